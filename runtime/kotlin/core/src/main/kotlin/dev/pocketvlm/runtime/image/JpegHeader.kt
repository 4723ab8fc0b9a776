package dev.pocketvlm.runtime.image

import java.io.ByteArrayOutputStream

/** Size, orientation and colours of a JPEG: its segments up to the first scan. Further pictures behind it do not count. */
internal fun readJpegHeader(file: ByteSource): Header {
    val segments = JpegSegments()
    var position = 2L
    while (true) {
        while (file.u8(position) != 0xff) position++
        while (file.u8(position) == 0xff) position++
        val marker = file.u8(position++)
        if (marker == START_OF_SCAN) break
        if (marker == END_OF_IMAGE) throw DamagedImageException("there is no picture in it")
        if (marker in STANDALONE || marker == 0 || marker == 1) continue
        val length = file.u16(position, little = false)
        if (length < 2) throw DamagedImageException("a segment has length $length")
        segments.add(marker, file, position + 2, length - 2)
        position += length
    }
    return segments.header()
}

private const val START_OF_SCAN = 0xda
private const val END_OF_IMAGE = 0xd9

/** Restarts, and the start of the image. */
private val STANDALONE = 0xd0..0xd8

private val FRAMES = (0xc0..0xcf) - setOf(0xc4, 0xc8, 0xcc)

private class JpegSegments {
    private val exif = ByteArrayOutputStream()
    private var packet: String? = null
    private var jfif = false
    private var adobeTransform: Int? = null
    private var size: Pair<Long, Long>? = null
    private var components = ""

    fun add(marker: Int, file: ByteSource, data: Long, length: Int) {
        when (marker) {
            0xe0 -> if (length >= 5 && file.matches(data, "JFIF\u0000")) jfif = true
            0xe1 -> addDescription(file.read(data, length))
            0xee -> if (length >= 12 && file.matches(data, "Adobe")) adobeTransform = file.u8(data + 11)
            in FRAMES -> {
                if (size != null) return
                size = file.u16(data + 3, little = false).toLong() to file.u16(data + 1, little = false).toLong()
                components = (0 until file.u8(data + 5)).joinToString("") { file.text(data + 6 + it * 3, 1) }
            }
        }
    }

    private fun addDescription(block: ByteArray) {
        val text = String(block, Charsets.ISO_8859_1)
        // An EXIF block that does not fit into one segment goes on in the next, which has its own heading.
        if (text.startsWith("Exif\u0000\u0000")) exif.write(block, 6, block.size - 6)
        if (text.startsWith(XMP_HEADING)) packet = text.substring(XMP_HEADING.length)
    }

    fun header(): Header {
        val (width, height) = size ?: throw DamagedImageException("it does not say how large the picture is")
        val orientation = exifOrientation(exif.toByteArray()) ?: packet?.let(::xmpOrientation) ?: 1
        return Header(width, height, orientation, jpegColours = colours())
    }

    private fun colours(): JpegColours = when (components.length) {
        1 -> JpegColours.GREY
        3 -> when {
            jfif -> JpegColours.YCC
            adobeTransform != null -> if (adobeTransform == 0) JpegColours.RGB else JpegColours.YCC
            components == "RGB" -> JpegColours.RGB
            else -> JpegColours.YCC
        }
        4 -> if (adobeTransform == 2) JpegColours.YCCK else JpegColours.CMYK
        else -> throw DamagedImageException("its pixels have ${components.length} components")
    }

    private companion object {
        const val XMP_HEADING = "http://ns.adobe.com/xap/1.0/\u0000"
    }
}
