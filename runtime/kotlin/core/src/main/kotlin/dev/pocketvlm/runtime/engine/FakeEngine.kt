package dev.pocketvlm.runtime.engine

import com.google.gson.JsonElement
import com.google.gson.JsonObject
import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.CancelledException
import dev.pocketvlm.runtime.Dimension
import dev.pocketvlm.runtime.POCKETVLM_VERSION
import dev.pocketvlm.runtime.TensorSpec
import dev.pocketvlm.runtime.TensorType
import dev.pocketvlm.runtime.parseJson
import dev.pocketvlm.runtime.readChoice
import dev.pocketvlm.runtime.readDouble
import dev.pocketvlm.runtime.readInt
import dev.pocketvlm.runtime.readList
import dev.pocketvlm.runtime.readMap
import dev.pocketvlm.runtime.readText
import java.io.File
import java.io.IOException
import java.util.concurrent.TimeUnit
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock
import kotlin.math.abs

/**
 * A scripted engine without a model, for tests of everything above it; it reads the same scripts as Python's
 * (`runtime/engines/fake.py`), computes the same, and is as strict: wrong names, types, shapes, positions or cache contents
 * throw [FakeEngineError].
 *
 * - mean: each row of the batch becomes its mean plus `add` everywhere.
 * - embed: token id t becomes a row of t's.
 * - decoder: reads token ids back from the embeddings and writes one column per token into each layer's cache. The next
 *   token is chain[last token], else a checksum of all columns so far: one wrong column changes the answer.
 *
 * A run stalls on the values of `stall_on`, up to a minute, until it is cancelled.
 */
public class FakeEngine : Engine {
    override val version: String get() = POCKETVLM_VERSION

    override fun open(file: File, options: Map<String, String>, threads: Int?): EngineSession = try {
        FakeSession(graphName(file), FakeScript.read(file))
    } catch (error: IOException) {
        throw BundleException("${graphName(file)}: not a script of the fake engine: ${firstLine(error)}", cause = error)
    }
}

/** The runtime handed a graph something that it must not. */
public class FakeEngineError(message: String) : AssertionError(message)

internal class FakeScript(
    val rule: String,
    val inputs: Map<String, TensorSpec>,
    val outputs: Map<String, TensorSpec>,
    val add: Double,
    val chain: Map<Int, Int>,
    val stallOn: Set<Double>,
) {
    companion object {
        fun read(file: File): FakeScript {
            val name = graphName(file)
            val root = parseJson(file.readText(), name) as? JsonObject
                ?: throw BundleException("$name: not a script of the fake engine")
            fun <T> field(key: String, default: T, read: (JsonElement, String) -> T): T =
                root[key]?.let { read(it, "$name.$key") } ?: default
            return FakeScript(
                rule = field("rule", "", ::readText),
                inputs = field("inputs", emptyList(), readList(::tensor)).associateBy { it.name },
                outputs = field("outputs", emptyList(), readList(::tensor)).associateBy { it.name },
                add = field("add", 0.0, ::readDouble),
                chain = field("chain", emptyMap(), readMap(::readInt)).mapKeys { it.key.toInt() },
                stallOn = field("stall_on", emptyList(), readList(::readDouble)).toSet(),
            )
        }

        private fun tensor(value: JsonElement, where: String): TensorSpec {
            val fields = value as? JsonObject ?: throw BundleException("$where: not a tensor")
            val shape = readList { size, place ->
                if (size.asJsonPrimitive.isString) Dimension.Named(size.asString) else Dimension.Fixed(readInt(size, place))
            }
            return TensorSpec(
                readText(fields["name"], where),
                readChoice<TensorType>(fields["dtype"], where),
                shape(fields["shape"], where),
            )
        }
    }
}

internal class FakeSession(private val name: String, private val script: FakeScript) : EngineSession {
    private val lock = ReentrantLock()
    private val changed = lock.newCondition()
    private var running = false
    private var cancelled = false
    private var closed = false

    override fun bind(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>): BoundRun {
        check(outputs.keys.all { it in script.outputs }) { "no outputs ${outputs.keys - script.outputs.keys}" }
        checkTensors(inputs, script.inputs, script.inputs.keys, HashMap())
        for ((output, tensor) in outputs) {
            if (output.startsWith("present_")) {
                check(tensor === inputs[output.replaceFirst("present_", "past_")]) { "$output is not bound to the buffer of its past" }
            }
        }
        return object : BoundRun {
            override fun run(cancelled: () -> Boolean): Double {
                val start = System.nanoTime()
                run(inputs, outputs, cancelled)
                return (System.nanoTime() - start) * 1e-9
            }

            override fun close() = Unit
        }
    }

    override fun cancel() = lock.withLock {
        cancelled = running
        changed.signalAll()
    }

    override fun close() = lock.withLock {
        check(!running) { "closed during a run" }
        closed = true
    }

    private fun run(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>, isCancelled: () -> Boolean) {
        lock.withLock {
            check(!closed) { "run after close" }
            check(!running) { "two runs at once" }
            running = true
            cancelled = false
        }
        try {
            if (isCancelled()) throw CancelledException("$name: the run was cancelled")
            val sizes = HashMap<String, Int>()
            checkTensors(inputs, script.inputs, script.inputs.keys, sizes)
            checkTensors(outputs, script.outputs, outputs.keys, sizes)
            when (script.rule) {
                "mean" -> mean(inputs.values.single(), outputs)
                "embed" -> embed(inputs.getValue("token_ids"), outputs.getValue("embeddings"))
                "decoder" -> FakeDecoder(script, ::check, ::stall).run(inputs, outputs)
                else -> check(false) { "no rule '${script.rule}'" }
            }
        } finally {
            lock.withLock { running = false }
        }
    }

    private inline fun check(truth: Boolean, complaint: () -> String) {
        if (!truth) throw FakeEngineError("$name: ${complaint()}")
    }

    private fun checkTensors(
        tensors: Map<String, Tensor>,
        specs: Map<String, TensorSpec>,
        wanted: Set<String>,
        sizes: MutableMap<String, Int>,
    ) {
        check(tensors.keys == wanted) { "expected $wanted, found ${tensors.keys}" }
        for ((key, tensor) in tensors) {
            val spec = specs.getValue(key)
            check(tensor.type == spec.type) { "$key: expected ${spec.type}, found ${tensor.type}" }
            val fits = tensor.shape.size == spec.shape.size && tensor.shape.zip(spec.shape).all { (size, dimension) ->
                when (dimension) {
                    is Dimension.Fixed -> size == dimension.size
                    is Dimension.Named -> size == sizes.getOrPut(dimension.name) { size }
                }
            }
            check(fits) { "$key: expected shape ${spec.shape} with $sizes, found ${tensor.shape}" }
        }
    }

    private fun stall(values: Sequence<Double>) {
        if (script.stallOn.isEmpty() || values.none { it in script.stallOn }) return
        lock.withLock {
            var left = TimeUnit.SECONDS.toNanos(STALL_SECONDS)
            while (!cancelled && left > 0) left = changed.awaitNanos(left)
            if (cancelled) throw CancelledException("$name: the run was cancelled")
        }
        throw FakeEngineError("$name: stalled and nobody cancelled")
    }

    private fun mean(source: Tensor, outputs: Map<String, Tensor>) {
        val rows = source.shape[0]
        val perRow = source.count / rows
        val values = source.floats()
        val means = DoubleArray(rows) { row -> (0 until perRow).sumOf { values[row * perRow + it].toDouble() } / perRow }
        stall(means.asSequence().map { Math.rint(it * 1000) / 1000 })
        for (output in outputs.values) {
            val target = output.floats()
            for (index in 0 until output.count) target.put(index, (means[index / (output.count / rows)] + script.add).toFloat())
        }
    }

    private fun embed(ids: Tensor, embeddings: Tensor) {
        val size = embeddings.shape.last()
        val target = embeddings.floats()
        for (index in 0 until embeddings.count) target.put(index, ids.longs()[index / size].toFloat())
    }

    private companion object {
        const val STALL_SECONDS = 60L
    }
}

/** The rule "decoder". */
private class FakeDecoder(
    private val script: FakeScript,
    private val check: (Boolean, () -> String) -> Unit,
    private val stall: (Sequence<Double>) -> Unit,
) {
    fun run(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>) {
        val embeddings = inputs.getValue("embeddings")
        val past = inputs.getValue("past_length").longs()[0].toInt()
        val (length, size) = embeddings.shape.drop(1)
        val layers = script.inputs.keys.filter { it.startsWith("past_key.") }.map { it.removePrefix("past_key.") }
        val capacity = inputs.getValue("past_key.${layers[0]}").shape[2]
        val inPlace = "present_key.0" in script.outputs
        check(past in 0 until capacity) { "past_length $past outside the capacity of $capacity" }
        check(!inPlace || past + length <= capacity) { "$past + $length positions in a cache of $capacity" }
        val numbers = embeddings.floats()
        stall((0 until embeddings.count).asSequence().map { numbers[it].toDouble() })
        val values = DoubleArray(length) { row -> (0 until size).sumOf { numbers[row * size + it].toDouble() } / size }
        val written = values.map(::column)
        val before = (0 until past).map { inputs.getValue("past_key.${layers[0]}").data[it * stride(inputs, layers[0])].toInt() }
        check(0 !in before) { "past_length $past covers columns that nobody wrote: $before" }
        for (layer in layers) {
            for ((kind, sign) in listOf("key" to 1, "value" to -1)) {
                val cache = inputs.getValue("past_$kind.$layer")
                check(holds(cache, before, sign)) { "past_$kind.$layer does not hold the context" }
                val fresh = if (inPlace) cache else outputs["new_$kind.$layer"]
                fresh?.let { write(it, if (inPlace) past else 0, written, sign) }
            }
        }
        outputs["logits"]?.let { logits ->
            val vocabulary = logits.shape.last()
            val total = (before + written).withIndex().sumOf { (position, item) -> (position + 1) * item }
            for (index in 0 until vocabulary) logits.floats().put(index, 0f)
            logits.floats().put(script.chain[Math.rint(values.last()).toInt()] ?: (total % vocabulary), 10f)
        }
    }

    private fun stride(inputs: Map<String, Tensor>, layer: String) = inputs.getValue("past_key.$layer").shape[3]

    private fun holds(cache: Tensor, columns: List<Int>, sign: Int): Boolean {
        val (heads, capacity, size) = cache.shape.drop(1)
        return (0 until heads).all { head ->
            columns.withIndex().all { (position, item) ->
                val start = (head * capacity + position) * size
                (start until start + size).all { cache.data[it].toInt() == sign * item }
            }
        }
    }

    private fun write(target: Tensor, from: Int, columns: List<Int>, sign: Int) {
        val (heads, capacity, size) = target.shape.drop(1)
        for (head in 0 until heads) {
            for ((position, item) in columns.withIndex()) {
                val start = (head * capacity + from + position) * size
                for (index in start until start + size) target.data.put(index, (sign * item).toByte())
            }
        }
    }

    /** What is written into the cache for an embedding of [value]: 1 to 100, so never an untouched 0. */
    private fun column(value: Double): Int = Math.rint(abs(value) * 8).toInt() % 100 + 1
}
