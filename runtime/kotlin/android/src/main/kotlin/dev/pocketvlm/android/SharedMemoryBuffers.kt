package dev.pocketvlm.android

import android.os.SharedMemory
import android.system.ErrnoException
import dev.pocketvlm.runtime.engine.Memory
import java.nio.ByteBuffer

/**
 * Buffers in anonymous shared memory. Android counts direct buffers as the app's heap, whose limit (often 256 or 512 MB) a KV
 * cache soon fills; these count as native memory, limited by what the phone has.
 *
 * Pages are zeros, and take memory when they are first written to. Android unmaps a buffer when nothing refers to it, or to a
 * view of it, any more.
 */
public object SharedMemoryBuffers : Memory {
    /** @throws OutOfMemoryError there is no room for it. */
    override fun allocate(bytes: Int): ByteBuffer {
        if (bytes == 0) return ByteBuffer.allocateDirect(0)
        return try {
            // The mapping outlives the descriptor, of which a process may only have so many.
            SharedMemory.create(null, bytes).use { it.mapReadWrite() }
        } catch (error: ErrnoException) {
            throw OutOfMemoryError("$bytes bytes of shared memory: ${error.message}").apply { initCause(error) }
        }
    }

    /** Unmaps a buffer now; neither it nor a view of it may be used afterwards. */
    internal fun free(buffer: ByteBuffer) = SharedMemory.unmap(buffer)
}
