package dev.pocketvlm.runtime.image

import java.io.Closeable
import java.io.EOFException
import java.io.IOException
import java.io.RandomAccessFile

/** What a file says that it cannot mean. The decoder makes an ImageException of it. */
internal class DamagedImageException(message: String) : IOException(message)

/** Random access to the bytes of a file, so that headers are read without the rest. */
internal abstract class ByteSource : Closeable {
    abstract val length: Long

    /** Read [count] bytes at [position]; EOFException where there are fewer. */
    abstract fun read(position: Long, count: Int): ByteArray

    override fun close() = Unit

    fun u8(position: Long): Int = read(position, 1)[0].toInt() and 0xff

    fun u16(position: Long, little: Boolean): Int {
        val (first, second) = read(position, 2).map { it.toInt() and 0xff }
        return if (little) second shl 8 or first else first shl 8 or second
    }

    fun u32(position: Long, little: Boolean): Long {
        val first = u16(position, little).toLong()
        val second = u16(position + 2, little).toLong()
        return if (little) second shl 16 or first else first shl 16 or second
    }

    fun text(position: Long, count: Int): String = String(read(position, count), Charsets.ISO_8859_1)

    /** Whether the bytes at [position] are those of [magic], read as Latin-1. */
    fun matches(position: Long, magic: String): Boolean =
        position + magic.length <= length && text(position, magic.length) == magic
}

internal class ArraySource(private val bytes: ByteArray, private val start: Int = 0) : ByteSource() {
    override val length: Long get() = bytes.size.toLong() - start

    override fun read(position: Long, count: Int): ByteArray {
        if (position < 0 || position + count > length) throw EOFException("the file ends too early")
        val begin = start + position.toInt()
        return bytes.copyOfRange(begin, begin + count)
    }
}

/** A file on disk, through a window of [WINDOW] bytes. */
internal class FileSource(private val file: RandomAccessFile) : ByteSource() {
    override val length: Long = file.length()
    private var window = ByteArray(0)
    private var windowStart = 0L

    override fun read(position: Long, count: Int): ByteArray {
        if (position < 0 || position + count > length) throw EOFException("the file ends too early")
        if (count > WINDOW) return fromDisk(position, count)
        if (position < windowStart || position + count > windowStart + window.size) {
            window = fromDisk(position, minOf(WINDOW.toLong(), length - position).toInt())
            windowStart = position
        }
        val begin = (position - windowStart).toInt()
        return window.copyOfRange(begin, begin + count)
    }

    private fun fromDisk(position: Long, count: Int): ByteArray {
        file.seek(position)
        return ByteArray(count).also { file.readFully(it) }
    }

    override fun close() = file.close()

    private companion object {
        const val WINDOW = 1 shl 14
    }
}
