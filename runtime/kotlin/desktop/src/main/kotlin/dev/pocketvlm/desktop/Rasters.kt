package dev.pocketvlm.desktop

import dev.pocketvlm.runtime.ImageException
import dev.pocketvlm.runtime.image.RgbImage
import dev.pocketvlm.runtime.image.grey8
import dev.pocketvlm.runtime.image.overWhite
import java.awt.color.ColorSpace
import java.awt.image.BufferedImage
import java.awt.image.DataBuffer
import java.awt.image.IndexColorModel
import javax.imageio.ImageReader
import javax.imageio.plugins.tiff.BaselineTIFFTagSet
import javax.imageio.plugins.tiff.TIFFDirectory

/**
 * The samples of [image] as 8-bit RGB, by Pillow's formulas; [name] stands for it in messages.
 *
 * @param colourMap the palette of a TIFF, if it has one: all reds, all greens, all blues, in 16 bits.
 */
internal fun rgbOf(image: BufferedImage, name: String, colourMap: IntArray? = null): RgbImage {
    val pixels = ByteArray(image.width * image.height * 3)
    val convert = if (colourMap == null) converter(image, name) else byColourMap(colourMap)
    val raster = image.raster
    val bands = raster.numBands
    val row = IntArray(image.width * bands)
    var target = 0
    for (y in 0 until image.height) {
        raster.getPixels(raster.minX, raster.minY + y, image.width, 1, row)
        for (source in row.indices step bands) {
            convert.convert(row, source, pixels, target)
            target += 3
        }
    }
    return RgbImage(image.width, image.height, pixels)
}

private fun interface Converter {
    /** One pixel, whose samples begin at [source], to RGB at [target]. */
    fun convert(samples: IntArray, source: Int, pixels: ByteArray, target: Int)
}

private fun converter(image: BufferedImage, name: String): Converter {
    val model = image.colorModel
    val type = image.raster.dataBuffer.dataType
    if (model is IndexColorModel) return byPalette(model)
    val widest = (0 until image.raster.numBands).maxOf { image.sampleModel.getSampleSize(it) }
    if (type == DataBuffer.TYPE_FLOAT || type == DataBuffer.TYPE_DOUBLE || widest > 16) {
        throw ImageException(
            "$name has 32-bit pixels without an agreed range",
            "convert it to an 8-bit RGB image in one of PNG, JPEG, BMP, GIF, TIFF",
        )
    }
    val space = model.colorSpace.type
    return when {
        space == ColorSpace.TYPE_GRAY -> grey(widest, model.hasAlpha())
        space == ColorSpace.TYPE_RGB -> colour(image, model.hasAlpha(), model.isAlphaPremultiplied)
        space == ColorSpace.TYPE_CMYK && widest == 8 -> Converter { samples, source, pixels, target ->
            for (channel in 0 until 3) pixels[target + channel] = inked(samples[source + channel], 255 - samples[source + 3])
        }
        else -> throw ImageException("$name has pixels of an unknown kind", "convert it to an 8-bit RGB image")
    }
}

/** The palette of a TIFF, of whose 16 bits Pillow keeps the upper 8 and the JDK the nearest 8. */
internal fun colourMap(reader: ImageReader): IntArray? {
    val directory = TIFFDirectory.createFromMetadata(reader.getImageMetadata(0))
    return directory.getTIFFField(BaselineTIFFTagSet.TAG_COLOR_MAP)?.asChars?.let { map -> IntArray(map.size) { map[it].code } }
}

private fun byColourMap(map: IntArray) = Converter { samples, source, pixels, target ->
    for (channel in 0 until 3) pixels[target + channel] = (map[channel * (map.size / 3) + samples[source]] shr 8).toByte()
}

private fun byPalette(model: IndexColorModel) = Converter { samples, source, pixels, target ->
    val colour = model.getRGB(samples[source])
    for (channel in 0 until 3) {
        pixels[target + channel] = overWhite(colour shr (16 - 8 * channel) and 255, colour ushr 24).toByte()
    }
}

private fun grey(bits: Int, alpha: Boolean) = Converter { samples, source, pixels, target ->
    val value = samples[source].let { if (bits == 16) grey8(it) else it * 255 / ((1 shl bits) - 1) }
    val shown = if (alpha) overWhite(value, samples[source + 1]) else value
    pixels.fill(shown.toByte(), target, target + 3)
}

private fun colour(image: BufferedImage, alpha: Boolean, premultiplied: Boolean): Converter {
    val sizes = image.sampleModel.sampleSize
    // Of 16 bits the upper 8 are kept; fewer than 8 are stretched to the full range.
    fun eight(value: Int, band: Int): Int {
        val bits = sizes[band]
        return if (bits > 8) value shr (bits - 8) else value * 255 / ((1 shl bits) - 1)
    }
    return Converter { samples, source, pixels, target ->
        val opacity = if (alpha) eight(samples[source + 3], 3) else 255
        for (channel in 0 until 3) {
            var value = eight(samples[source + channel], channel)
            if (premultiplied && opacity != 0) value = minOf(255, value * 255 / opacity)
            pixels[target + channel] = overWhite(value, opacity).toByte()
        }
    }
}

/** What is seen of [paper], 255 minus the black ink, under [ink] of one colour. */
internal fun inked(ink: Int, paper: Int): Byte {
    val product = ink * paper + 128
    return clip(paper - (((product shr 8) + product) shr 8))
}

internal fun clip(value: Int): Byte = (if (value < 0) 0 else if (value > 255) 255 else value).toByte()
