package dev.pocketvlm.runtime.image

/**
 * What a file's header says.
 *
 * @property several whether the file holds several frames or pages.
 */
internal class Header(
    val width: Long,
    val height: Long,
    val orientation: Int = 1,
    val several: Boolean = false,
    val jpegColours: JpegColours? = null,
)

/** The format by the first bytes, whatever the file is called; null for none of ours. */
internal fun formatOf(file: ByteSource): ImageFormat? = when {
    file.matches(0, "\u0089PNG\r\n\u001a\n") -> ImageFormat.PNG
    file.matches(0, "\u00ff\u00d8\u00ff") -> ImageFormat.JPEG
    file.matches(0, "RIFF") && file.matches(8, "WEBPVP8") -> ImageFormat.WEBP
    file.matches(0, "BM") -> ImageFormat.BMP
    file.matches(0, "GIF87a") || file.matches(0, "GIF89a") -> ImageFormat.GIF
    file.matches(0, "II*\u0000") || file.matches(0, "MM\u0000*") -> ImageFormat.TIFF
    else -> null
}

internal fun readHeader(format: ImageFormat, file: ByteSource): Header = when (format) {
    ImageFormat.PNG -> readPngHeader(file)
    ImageFormat.JPEG -> readJpegHeader(file)
    ImageFormat.WEBP -> readWebpHeader(file)
    ImageFormat.BMP -> readBmpHeader(file)
    ImageFormat.GIF -> readGifHeader(file)
    ImageFormat.TIFF -> readTiffHeader(file)
}

/** A BMP's size. Rows from the top down are a negative height. */
private fun readBmpHeader(file: ByteSource): Header {
    if (file.u32(14, little = true) == 12L) {
        return Header(file.u16(18, little = true).toLong(), file.u16(20, little = true).toLong())
    }
    val height = file.u32(22, little = true).toInt().toLong()
    return Header(file.u32(18, little = true), Math.abs(height))
}

private fun readWebpHeader(file: ByteSource): Header {
    var width = 0L
    var height = 0L
    var orientation: Int? = null
    var described: Int? = null
    var frames = 0
    var position = 12L
    while (position + 8 <= file.length) {
        val kind = file.text(position, 4)
        val length = file.u32(position + 4, little = true)
        val data = position + 8
        when (kind) {
            "VP8X" -> {
                width = u24(file, data + 4) + 1
                height = u24(file, data + 7) + 1
            }
            "VP8 " -> if (width == 0L) {
                width = (file.u16(data + 6, little = true) and 0x3fff).toLong()
                height = (file.u16(data + 8, little = true) and 0x3fff).toLong()
            }
            "VP8L" -> if (width == 0L) {
                val bits = file.u32(data + 1, little = true)
                width = (bits and 0x3fff) + 1
                height = (bits shr 14 and 0x3fff) + 1
            }
            "ANMF" -> frames++
            "EXIF" -> orientation = exifOrientation(file.read(data, checkedLength(length, file)))
            "XMP " -> described = xmpOrientation(file.text(data, checkedLength(length, file)))
        }
        position = data + length + (length and 1)
    }
    return Header(width, height, orientation ?: described ?: 1, frames > 1)
}

private fun u24(file: ByteSource, position: Long): Long =
    file.u16(position, little = true).toLong() or (file.u8(position + 2).toLong() shl 16)

/** The length of a block that is read whole: no longer than the file, whatever it claims. */
internal fun checkedLength(length: Long, file: ByteSource): Int {
    if (length > file.length) throw DamagedImageException("a block of $length bytes does not fit into the file")
    return length.toInt()
}
