package dev.pocketvlm.runtime.image

import java.io.IOException

private const val ORIENTATION_TAG = 0x0112

/** The orientation in an EXIF block, which is a TIFF file without a picture; null where there is none. */
internal fun exifOrientation(block: ByteArray): Int? {
    var start = 0
    while (String(block, start, minOf(6, block.size - start), Charsets.ISO_8859_1) == "Exif\u0000\u0000") start += 6
    return try {
        val exif = ArraySource(block, start)
        if (!exif.matches(0, "II") && !exif.matches(0, "MM")) return null
        val little = exif.matches(0, "II")
        directory(exif, exif.u32(4, little), little)[ORIENTATION_TAG]?.toInt()
    } catch (_: IOException) {
        // Damaged metadata does not make the pixels unreadable.
        null
    }
}

/** The tags of a TIFF directory that hold one whole number, as far as the directory can be read. */
internal fun directory(file: ByteSource, offset: Long, little: Boolean): Map<Int, Long> {
    val tags = HashMap<Int, Long>()
    for (index in 0 until file.u16(offset, little)) {
        val entry = offset + 2 + index * 12L
        if (entry + 12 > file.length || file.u32(entry + 4, little) != 1L) continue
        val value = when (file.u16(entry + 2, little)) {
            1 -> file.u8(entry + 8).toLong()
            3 -> file.u16(entry + 8, little).toLong()
            4 -> file.u32(entry + 8, little)
            else -> continue
        }
        tags[file.u16(entry, little)] = value
    }
    return tags
}

private val XMP_ORIENTATION = Regex("tiff:Orientation(=\"|>)([0-9])")

/** The orientation in an XMP packet, which counts where EXIF has none. */
internal fun xmpOrientation(packet: String): Int? = XMP_ORIENTATION.find(packet)?.groupValues?.get(2)?.toInt()

/** The picture as EXIF orientation [orientation] wants it seen; itself where that changes nothing. */
internal fun upright(image: RgbImage, orientation: Int): RgbImage {
    if (orientation !in 2..8) return image
    val turned = orientation >= 5
    val width = if (turned) image.height else image.width
    val height = if (turned) image.width else image.height
    // The stored picture is walked in the order of the upright one: from its pixel (0, 0), along a row, down a column.
    val right = 3
    val below = image.width * 3
    val lastColumn = (image.width - 1) * right
    val lastRow = (image.height - 1) * below
    val (start, alongRow, alongColumn) = when (orientation) {
        2 -> Triple(lastColumn, -right, below)
        3 -> Triple(lastColumn + lastRow, -right, -below)
        4 -> Triple(lastRow, right, -below)
        5 -> Triple(0, below, right)
        6 -> Triple(lastRow, -below, right)
        7 -> Triple(lastColumn + lastRow, -below, -right)
        else -> Triple(lastColumn, below, -right)
    }
    val source = image.pixels
    val pixels = ByteArray(source.size)
    var target = 0
    for (y in 0 until height) {
        var position = start + y * alongColumn
        for (x in 0 until width) {
            pixels[target] = source[position]
            pixels[target + 1] = source[position + 1]
            pixels[target + 2] = source[position + 2]
            target += 3
            position += alongRow
        }
    }
    return RgbImage(width, height, pixels)
}
