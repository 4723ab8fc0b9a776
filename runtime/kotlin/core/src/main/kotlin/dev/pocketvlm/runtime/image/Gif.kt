package dev.pocketvlm.runtime.image

import java.io.EOFException

/** The first frame of a GIF, and what stands before its pixels. */
internal class GifFrame(
    val left: Int,
    val top: Int,
    val width: Int,
    val height: Int,
    val interlaced: Boolean,
    val palette: ByteArray?,
    val transparent: Int?,
    val data: Long,
)

/** The blocks of a GIF, as far as its first frame and the question whether there is another. */
internal class GifFile(private val file: ByteSource) {
    private var position = 13L
    private var transparent: Int? = null
    private val global: ByteArray?

    /** The whole picture: the screen, or more where the first frame stands out of it. */
    val width: Int
    val height: Int
    val first: GifFrame

    init {
        global = palette(file.u8(10))
        first = nextFrame() ?: throw DamagedImageException("there is no picture in it")
        width = maxOf(file.u16(6, little = true), first.left + first.width)
        height = maxOf(file.u16(8, little = true), first.top + first.height)
    }

    /** Whether there is a second frame. */
    fun hasAnother(): Boolean = try {
        skipBlocks(first.data + 1)
        nextFrame() != null
    } catch (_: EOFException) {
        false
    }

    private fun nextFrame(): GifFrame? {
        while (position < file.length) {
            when (file.u8(position++)) {
                0x21 -> extension()
                0x2c -> return frame()
                0x3b -> return null
            }
        }
        return null
    }

    private fun extension() {
        val isControl = file.u8(position++) == 0xf9
        if (isControl && file.u8(position) >= 4 && file.u8(position + 1) and 1 != 0) transparent = file.u8(position + 4)
        skipBlocks(position)
    }

    private fun skipBlocks(start: Long) {
        position = start
        while (true) {
            val length = file.u8(position++)
            if (length == 0) break
            position += length
        }
    }

    private fun frame(): GifFrame {
        val (left, top, width, height) = List(4) { file.u16(position + 2 * it, little = true) }
        val flags = file.u8(position + 8)
        position += 9
        // A frame whose own palette is the ramp of greys counts as grey, whatever the palette of the file.
        val own = palette(flags)
        return GifFrame(left, top, width, height, flags and 0x40 != 0, own ?: global, transparent, position)
    }

    private fun palette(flags: Int): ByteArray? {
        if (flags and 0x80 == 0) return null
        val length = 3 shl ((flags and 7) + 1)
        return file.read(position, length).also { position += length }
    }
}

internal fun readGifHeader(file: ByteSource): Header {
    val gif = GifFile(file)
    return Header(gif.width.toLong(), gif.height.toLong(), several = gif.hasAnother())
}

/** Reads the pixels of a GIF of one frame. What the frame leaves free of the screen looks as in Pillow, too. */
internal class GifDecoder(private val file: ByteSource) {
    fun decode(): RgbImage {
        val gif = GifFile(file)
        val frame = gif.first
        val indices = ByteArray(gif.width * gif.height)
        frame.transparent?.let { indices.fill(it.toByte()) }
        val codes = LzwCodes(file, frame.data)
        for (y in if (frame.interlaced) interlacedRows(frame.height) else (0 until frame.height).asSequence()) {
            codes.readFully(indices, (frame.top + y) * gif.width + frame.left, frame.width)
        }
        val table = table(frame)
        val pixels = ByteArray(indices.size * 3)
        for (index in indices.indices) {
            val entry = (indices[index].toInt() and 0xff) * 3
            for (channel in 0 until 3) pixels[index * 3 + channel] = table[entry + channel]
        }
        return RgbImage(gif.width, gif.height, pixels)
    }

    private fun table(frame: GifFrame): ByteArray {
        val ramp = ByteArray(256 * 3) { (it / 3).toByte() }
        val palette = frame.palette ?: ramp
        val isRamp = palette.indices.all { palette[it] == ramp[it] }
        val table = if (isRamp) ramp else palette.copyOf(256 * 3)
        frame.transparent?.let { table.fill(-1, it * 3, it * 3 + 3) }
        return table
    }

    private fun interlacedRows(height: Int): Sequence<Int> =
        sequenceOf(0 to 8, 4 to 8, 2 to 4, 1 to 2).flatMap { (start, step) -> (start until height step step).asSequence() }
}

/** The values that the LZW codes of a frame stand for. */
private class LzwCodes(private val file: ByteSource, start: Long) {
    private val smallest = file.u8(start)
    private val clear = 1 shl smallest
    private var position = start + 1
    private var block = ByteArray(0)
    private var used = 0
    private var bits = 0
    private var bitCount = 0
    private var codeSize = smallest + 1
    private var next = clear + 2
    private var last = -1
    private val prefix = IntArray(TABLE)
    private val suffix = ByteArray(TABLE)

    /** The latest string from its end, and how much of it is still to be handed out. */
    private val pending = ByteArray(TABLE + 1)
    private var pendingCount = 0

    init {
        if (smallest > 11) throw DamagedImageException("codes of $smallest bits")
    }

    fun readFully(into: ByteArray, offset: Int, count: Int) {
        for (index in offset until offset + count) {
            while (pendingCount == 0) expand()
            into[index] = pending[--pendingCount]
        }
    }

    private fun expand() {
        val code = nextCode()
        when {
            code == clear -> {
                codeSize = smallest + 1
                next = clear + 2
                last = -1
            }
            code == clear + 1 -> throw DamagedImageException("the pixels end too early")
            last < 0 -> {
                if (code > clear) throw DamagedImageException("a code that stands for nothing")
                pending[pendingCount++] = code.toByte()
                last = code
            }
            else -> expandString(code)
        }
    }

    private fun expandString(code: Int) {
        if (code > next) throw DamagedImageException("a code that stands for nothing")
        // A code that is only now defined stands for the last string and its first value again.
        var rest = code
        if (code == next) {
            pendingCount = 1
            rest = last
        }
        while (rest > clear) {
            if (pendingCount > TABLE - 1) throw DamagedImageException("a code that stands for itself")
            pending[pendingCount++] = suffix[rest]
            rest = prefix[rest]
        }
        pending[pendingCount++] = rest.toByte()
        if (code == next) pending[0] = rest.toByte()
        if (next < TABLE) {
            prefix[next] = last
            suffix[next] = rest.toByte()
            next++
            if (next == 1 shl codeSize && codeSize < 12) codeSize++
        }
        last = code
    }

    private fun nextCode(): Int {
        while (bitCount < codeSize) {
            if (used == block.size) nextBlock()
            bits = bits or ((block[used++].toInt() and 0xff) shl bitCount)
            bitCount += 8
        }
        val code = bits and ((1 shl codeSize) - 1)
        bits = bits ushr codeSize
        bitCount -= codeSize
        return code
    }

    private fun nextBlock() {
        val length = file.u8(position)
        if (length == 0) throw DamagedImageException("the pixels end too early")
        block = file.read(position + 1, length)
        position += 1 + length
        used = 0
    }

    private companion object {
        const val TABLE = 4096
    }
}
