package dev.pocketvlm.runtime.image

import java.util.zip.CRC32

/** One chunk of a PNG: its name, and where its data is. */
internal class PngChunk(val name: String, val data: Long, val length: Long)

/** The chunks of a PNG. Checksums are compared up to the first chunk of pixels, as Pillow does. */
internal fun pngChunks(file: ByteSource): Sequence<PngChunk> = sequence {
    var position = 8L
    var checking = true
    while (true) {
        val length = file.u32(position, little = false)
        val name = file.text(position + 4, 4)
        if (name.any { it !in 'a'..'z' && it !in 'A'..'Z' }) throw DamagedImageException("broken chunk names")
        val chunk = PngChunk(name, position + 8, length)
        if (name == "IDAT") checking = false
        if (checking && !checksumFits(file, chunk)) throw DamagedImageException("checksum of $name")
        yield(chunk)
        if (name == "IEND") break
        position += 12 + length
    }
}

private fun checksumFits(file: ByteSource, chunk: PngChunk): Boolean {
    val crc = CRC32()
    crc.update(file.read(chunk.data - 4, checkedLength(chunk.length + 4, file)))
    return crc.value == file.u32(chunk.data + chunk.length, little = false)
}

internal fun readPngHeader(file: ByteSource): Header {
    var size: Pair<Long, Long>? = null
    var exif: Int? = null
    var described: Int? = null
    var frames = 0L
    var pixelsSeen = false
    var frameSeen = false
    val chunks = pngChunks(file).iterator()
    while (true) {
        // Pixels that are cut off are reported when they are decoded, and not before the size has been checked.
        val chunk = if (pixelsSeen) nextOrNull(chunks) ?: break else chunks.next()
        when (chunk.name) {
            "IHDR" -> size = size ?: (file.u32(chunk.data, little = false) to file.u32(chunk.data + 4, little = false))
            "eXIf" -> exif = exifOrientation(file.read(chunk.data, checkedLength(chunk.length, file)))
            "iTXt" -> described = described ?: describedOrientation(file, chunk)
            "acTL" -> if (!pixelsSeen) frames = file.u32(chunk.data, little = false)
            "fcTL" -> if (!pixelsSeen) frameSeen = true
            "IDAT" -> pixelsSeen = true
            "IEND" -> break
        }
    }
    val (width, height) = size ?: throw DamagedImageException("there is no header in it")
    if (!pixelsSeen) throw DamagedImageException("there is no picture in it")
    // The picture outside the animation is one more.
    if (frames > 0x80000000L) frames = 0
    if (frames > 0 && !frameSeen) frames++
    return Header(width, height, exif ?: described ?: 1, frames > 1)
}

private fun nextOrNull(chunks: Iterator<PngChunk>): PngChunk? = try {
    chunks.next()
} catch (_: java.io.IOException) {
    null
}

private fun describedOrientation(file: ByteSource, chunk: PngChunk): Int? {
    val text = file.text(chunk.data, checkedLength(chunk.length, file))
    return if (text.startsWith("XML:com.adobe.xmp\u0000\u0000")) xmpOrientation(text) else null
}
