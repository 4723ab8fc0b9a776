package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.engine.Memory
import dev.pocketvlm.runtime.engine.Tensor
import dev.pocketvlm.runtime.engine.window
import java.nio.ByteBuffer

/**
 * The decoder's key and value buffers past_key.i, past_value.i of shape [1, kvHeads, capacity, headDim], and how much of them
 * is valid. Keys may be transposed: [1, kvHeads, headDim, capacity].
 *
 * Columns from [length] on are free: they may hold leftovers, which no graph reads.
 */
internal class KvCache(val spec: KvCacheSpec, memory: Memory) {
    /** Positions that are valid. */
    var length: Int = 0
        private set

    private val columns = listOf(spec.capacity, spec.headDim)
    private val keys = buffers(if (spec.keysTransposed) columns.reversed() else columns, memory)
    private val values = buffers(columns, memory)

    /** Bytes of all buffers at full capacity. */
    val bytes: Long get() = (keys + values).sumOf { it.data.limit().toLong() }

    /** The buffers as graph inputs. */
    fun past(): Map<String, Tensor> = named("past_key", "past_value")

    /** The same buffers as graph outputs, for the protocol that writes in place. */
    fun present(): Map<String, Tensor> = named("present_key", "present_value")

    /** Counts columns that were just written after [length] as valid. */
    fun advance(count: Int) {
        require(count in 0..spec.capacity - length) { "$count columns after $length do not fit a cache of ${spec.capacity}" }
        length += count
    }

    /**
     * Copies the first [count] columns of new_key.i, new_value.i [1, kvHeads, at least count, headDim] and counts them.
     * Transposed keys come as [1, kvHeads, headDim, at least count].
     */
    fun append(new: Map<String, Tensor>, count: Int) {
        val start = length
        advance(count)
        for (layer in 0 until spec.layers) {
            val newKeys = new.getValue("new_key.$layer")
            if (spec.keysTransposed) {
                // A column is one number in each of many rows.
                copyRows(newKeys, keys[layer], spec.kvHeads * spec.headDim, 1, start, count)
            } else {
                copyRows(newKeys, keys[layer], spec.kvHeads, spec.headDim, start, count)
            }
            copyRows(new.getValue("new_value.$layer"), values[layer], spec.kvHeads, spec.headDim, start, count)
        }
    }

    /** Keeps the first [count] columns. */
    fun truncate(count: Int) {
        require(count in 0..length) { "cannot cut a cache of $length columns to $count" }
        length = count
    }

    /** Rows of [from] and [to] hold columns of [width] numbers; the first [count] of each go to column [start]. */
    private fun copyRows(from: Tensor, to: Tensor, rows: Int, width: Int, start: Int, count: Int) {
        val column = width * spec.type.bytes
        val source = from.data.limit() / rows
        val target = to.data.limit() / rows
        val reader = from.data
        val writer: ByteBuffer = to.data.duplicate()
        for (row in 0 until rows) {
            (writer as java.nio.Buffer).position(row * target + start * column)
            writer.put(reader.window(row * source, count * column))
        }
    }

    private fun buffers(columns: List<Int>, memory: Memory): List<Tensor> =
        List(spec.layers) { Tensor.zeros(spec.type, listOf(1, spec.kvHeads) + columns, memory) }

    private fun named(key: String, value: String): Map<String, Tensor> =
        keys.withIndex().associate { (layer, tensor) -> "$key.$layer" to tensor } +
            values.withIndex().associate { (layer, tensor) -> "$value.$layer" to tensor }
}
