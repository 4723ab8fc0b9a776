package dev.pocketvlm.runtime.engine

import dev.pocketvlm.runtime.EnvironmentException
import dev.pocketvlm.runtime.TensorType
import java.nio.Buffer
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.LongBuffer

/**
 * Numbers in memory that an engine reads and writes without a copy.
 *
 * @property data the elements, row by row, in the processor's byte order; a direct buffer whose content is all of it.
 */
public class Tensor(public val type: TensorType, public val shape: List<Int>, public val data: ByteBuffer) {
    init {
        require(data.isDirect && data.order() == ByteOrder.nativeOrder()) { "only direct buffers in native order can be bound" }
        require(data.position() == 0 && data.limit() == byteCount(type, shape).toInt()) {
            "a buffer of ${data.limit()} bytes does not hold $type $shape"
        }
    }

    /** Number of elements. */
    public val count: Int get() = data.limit() / type.bytes

    /** A view of float32 elements. */
    public fun floats(): FloatBuffer = data.duplicate().order(ByteOrder.nativeOrder()).asFloatBuffer()

    /** A view of int64 elements. */
    public fun longs(): LongBuffer = data.duplicate().order(ByteOrder.nativeOrder()).asLongBuffer()

    /** The same memory, from element [start] on, in another shape. */
    public fun view(start: Int, shape: List<Int>): Tensor {
        val bytes = byteCount(type, shape).toInt()
        return Tensor(type, shape, data.window(start * type.bytes, bytes).slice().order(ByteOrder.nativeOrder()))
    }

    public companion object {
        /**
         * A tensor of zeros.
         *
         * @throws EnvironmentException there is no room, or one buffer cannot be so large.
         */
        public fun zeros(type: TensorType, shape: List<Int>, memory: Memory = Memory.DIRECT): Tensor {
            val bytes = byteCount(type, shape)
            if (bytes > Int.MAX_VALUE) {
                throw EnvironmentException("a tensor of $type $shape takes $bytes bytes; a buffer holds at most ${Int.MAX_VALUE}")
            }
            val buffer = try {
                memory.allocate(bytes.toInt())
            } catch (error: OutOfMemoryError) {
                throw EnvironmentException(
                    "no memory for a tensor of $type $shape, $bytes bytes",
                    "close other sessions, or export with a smaller --max-seq-len",
                    error,
                )
            }
            return Tensor(type, shape, buffer.order(ByteOrder.nativeOrder()))
        }

        private fun byteCount(type: TensorType, shape: List<Int>): Long =
            shape.fold(type.bytes.toLong()) { product, size -> Math.multiplyExact(product, size.toLong()) }
    }
}

/** The same memory, positioned at [start] and limited to [bytes] from there. */
internal fun ByteBuffer.window(start: Int, bytes: Int): ByteBuffer {
    val window = duplicate()
    // Android 8 has these methods in the base class only.
    (window as Buffer).limit(start + bytes)
    (window as Buffer).position(start)
    return window
}

/** Where large tensors lie. */
public fun interface Memory {
    /** A direct buffer of zeros. */
    public fun allocate(bytes: Int): ByteBuffer

    public companion object {
        /** The JVM's own direct buffers. On Android they count as the app's heap: better is shared memory there. */
        public val DIRECT: Memory = Memory(ByteBuffer::allocateDirect)
    }
}
