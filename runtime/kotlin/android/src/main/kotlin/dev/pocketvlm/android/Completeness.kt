package dev.pocketvlm.android

import dev.pocketvlm.runtime.image.ImageFile
import dev.pocketvlm.runtime.image.ImageFormat
import java.io.DataInputStream
import java.io.EOFException
import java.io.IOException

/**
 * Android's decoders show what there is of a file that is cut off, and grey below; that must not be taken for the picture.
 *
 * @throws IOException the file ends before its pixels do.
 */
internal fun checkComplete(image: ImageFile) {
    try {
        DataInputStream(image.open().buffered()).use { input ->
            when (image.format) {
                ImageFormat.JPEG -> findEndOfJpeg(input)
                ImageFormat.BMP -> skipBmp(input, image)
                ImageFormat.WEBP -> skipRiff(input)
                else -> Unit
            }
        }
    } catch (error: EOFException) {
        throw IOException("the pixels end too early", error)
    }
}

/** Reads up to the marker of the end, which cannot occur within the coded pixels. */
private fun findEndOfJpeg(input: DataInputStream) {
    skip(input, 2)
    while (true) {
        if (input.readUnsignedByte() != 0xff) continue
        var marker = input.readUnsignedByte()
        while (marker == 0xff) marker = input.readUnsignedByte()
        when (marker) {
            0xd9 -> return
            // A stuffed 0xff, restarts, and markers without content.
            0x00, 0x01, 0xd8, in 0xd0..0xd7 -> Unit
            else -> skip(input, input.readUnsignedShort() - 2L)
        }
    }
}

private fun skipBmp(input: DataInputStream, image: ImageFile) {
    skip(input, 10)
    val pixelsAt = little32(input)
    val header = little32(input)
    // Width, height and planes, in the old header with half the bytes.
    skip(input, if (header == 12L) 6L else 10L)
    val bits = Integer.reverseBytes(input.readUnsignedShort() shl 16)
    val compression = if (header == 12L) 0L else little32(input)
    val read = if (header == 12L) 26L else 34L
    // Runs have no size that the header would tell; a file of them that is cut off is found only where nothing is left.
    val rows = if (compression == 1L || compression == 2L) 1L else (image.width.toLong() * bits + 31) / 32 * 4 * image.height
    skip(input, pixelsAt - read + rows)
}

private fun skipRiff(input: DataInputStream) {
    skip(input, 4)
    skip(input, little32(input))
}

private fun little32(input: DataInputStream): Long = Integer.reverseBytes(input.readInt()).toLong() and 0xffffffffL

/** Reads [bytes]; a file's own `skip` goes beyond its end without a word. */
private fun skip(input: DataInputStream, bytes: Long) {
    val block = ByteArray(minOf(bytes, 1L shl 15).toInt())
    var left = bytes
    while (left > 0) {
        val count = minOf(left, block.size.toLong()).toInt()
        input.readFully(block, 0, count)
        left -= count
    }
}
