package dev.pocketvlm.runtime.image

import java.util.zip.DataFormatException
import java.util.zip.Inflater

/**
 * Reads the pixels of a PNG. Every kind that the format has becomes the RGB that Pillow makes of it; no platform's own
 * decoder does that for all of them (16 bits, transparent colours, premultiplied alpha, gamma).
 *
 * Beside the result, two rows are held.
 */
internal class PngDecoder(private val file: ByteSource) {
    fun decode(): RgbImage {
        val header = file.read(pngChunks(file).first { it.name == "IHDR" }.data, 13)
        val width = ArraySource(header).u32(0, little = false).toInt()
        val height = ArraySource(header).u32(4, little = false).toInt()
        val (bits, kind, compression, filter, interlace) = header.drop(8).map { it.toInt() and 0xff }
        val channels = CHANNELS[kind to bits] ?: throw DamagedImageException("no such pixels: type $kind of $bits bits")
        if (compression != 0 || filter != 0) throw DamagedImageException("unknown compression or filter")
        val converter = converter(bits, kind)
        val pixels = ByteArray(width * height * 3)
        PngStream(file).use { stream ->
            val bitsPerPixel = bits * channels
            for (pass in if (interlace != 0) INTERLACED else WHOLE) {
                val across = pass.along(width, pass.left, pass.stepX)
                val down = pass.along(height, pass.top, pass.stepY)
                if (across == 0 || down == 0) continue
                val rows = PngRows(stream, (across.toLong() * bitsPerPixel + 7) / 8, maxOf(1, bitsPerPixel / 8))
                for (y in 0 until down) {
                    val target = ((pass.top + y * pass.stepY) * width + pass.left) * 3
                    converter.convert(rows.next(), across, pixels, target, pass.stepX * 3)
                }
            }
        }
        return RgbImage(width, height, pixels)
    }

    private fun converter(bits: Int, kind: Int): PngPixels {
        val before = pngChunks(file).takeWhile { it.name != "IDAT" }.toList()
        fun chunk(name: String) = before.lastOrNull { it.name == name }?.let { file.read(it.data, it.length.toInt()) }
        val transparent = chunk("tRNS")
        return when (kind) {
            GREY -> if (bits == 16) WideGrey(transparent) else TablePixels(bits, greyTable(bits, transparent))
            PALETTE -> TablePixels(bits, paletteTable(chunk("PLTE"), transparent))
            COLOUR -> ColourPixels(bits / 8, transparent)
            else -> AlphaPixels(bits / 8, grey = kind == GREY_ALPHA)
        }
    }

    private companion object {
        const val GREY = 0
        const val COLOUR = 2
        const val PALETTE = 3
        const val GREY_ALPHA = 4
        const val COLOUR_ALPHA = 6

        /** Channels of every colour type and depth that there is. */
        val CHANNELS = mapOf(GREY to 1, PALETTE to 1, COLOUR to 3, GREY_ALPHA to 2, COLOUR_ALPHA to 4)
            .flatMap { (kind, channels) -> depths(kind).map { (kind to it) to channels } }.toMap()

        fun depths(kind: Int) = when (kind) {
            GREY -> listOf(1, 2, 4, 8, 16)
            PALETTE -> listOf(1, 2, 4, 8)
            else -> listOf(8, 16)
        }

        val WHOLE = listOf(Pass(0, 0, 1, 1))

        /** Adam7. */
        val INTERLACED = listOf(
            Pass(0, 0, 8, 8), Pass(4, 0, 8, 8), Pass(0, 4, 4, 8), Pass(2, 0, 4, 4), Pass(0, 2, 2, 4), Pass(1, 0, 2, 2),
            Pass(0, 1, 1, 2),
        )
    }
}

/** The pixels of a picture that one pass of an interlaced file holds. */
private class Pass(val left: Int, val top: Int, val stepX: Int, val stepY: Int) {
    fun along(size: Int, start: Int, step: Int): Int = if (size <= start) 0 else (size - start - 1) / step + 1
}

/** The inflated data of the IDAT chunks, which are one stream. */
private class PngStream(private val file: ByteSource) : AutoCloseable {
    private val chunks = pngChunks(file).dropWhile { it.name != "IDAT" }.takeWhile { it.name == "IDAT" }.iterator()
    private val inflater = Inflater()
    private var position = 0L
    private var left = 0L

    fun readFully(into: ByteArray) {
        var filled = 0
        while (filled < into.size) {
            val count = try {
                inflater.inflate(into, filled, into.size - filled)
            } catch (error: DataFormatException) {
                throw DamagedImageException("compressed data: ${error.message}")
            }
            filled += count
            if (count > 0) continue
            if (!inflater.needsInput()) throw DamagedImageException("the pixels end too early")
            feed()
        }
    }

    private fun feed() {
        while (left == 0L) {
            if (!chunks.hasNext()) throw DamagedImageException("the pixels end too early")
            val chunk = chunks.next()
            position = chunk.data
            left = chunk.length
        }
        // What is there of a chunk that is cut off may still be all that is needed.
        val count = minOf(left, file.length - position, BLOCK).toInt()
        if (count <= 0) throw DamagedImageException("the pixels end too early")
        inflater.setInput(file.read(position, count))
        position += count
        left -= count
    }

    override fun close() = inflater.end()

    private companion object {
        const val BLOCK = 1L shl 15
    }
}

/** Rows of a pass with their filters undone. */
private class PngRows(private val stream: PngStream, length: Long, private val pixelBytes: Int) {
    private var row = ByteArray(length.toInt())
    private var above = ByteArray(length.toInt())
    private val filter = ByteArray(1)

    fun next(): ByteArray {
        val current = above
        above = row
        row = current
        stream.readFully(filter)
        stream.readFully(row)
        when (filter[0].toInt()) {
            0 -> Unit
            1 -> for (index in pixelBytes until row.size) add(index, row[index - pixelBytes].toInt())
            2 -> for (index in row.indices) add(index, above[index].toInt())
            3 -> for (index in row.indices) add(index, (left(index) + (above[index].toInt() and 0xff)) / 2)
            4 -> for (index in row.indices) add(index, paeth(index))
            else -> throw DamagedImageException("unknown filter ${filter[0]}")
        }
        return row
    }

    private fun add(index: Int, value: Int) {
        row[index] = (row[index] + value).toByte()
    }

    private fun left(index: Int) = if (index < pixelBytes) 0 else row[index - pixelBytes].toInt() and 0xff

    private fun paeth(index: Int): Int {
        val a = left(index)
        val b = above[index].toInt() and 0xff
        val c = if (index < pixelBytes) 0 else above[index - pixelBytes].toInt() and 0xff
        val toA = Math.abs(b - c)
        val toB = Math.abs(a - c)
        val toC = Math.abs(a + b - 2 * c)
        return if (toA <= toB && toA <= toC) a else if (toB <= toC) b else c
    }
}
