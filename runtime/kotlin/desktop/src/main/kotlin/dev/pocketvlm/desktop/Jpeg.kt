package dev.pocketvlm.desktop

import dev.pocketvlm.runtime.image.JpegColours
import dev.pocketvlm.runtime.image.RgbImage
import java.awt.image.DataBufferByte
import java.awt.image.PixelInterleavedSampleModel
import java.awt.image.Raster
import javax.imageio.ImageReader

/** The picture of a JPEG [reader], whose components, not yet converted, are [colours]. */
internal fun decodeJpeg(reader: ImageReader, colours: JpegColours): RgbImage {
    val raster = reader.readRaster(0, null)
    val bands = raster.numBands
    val samples = interleaved(raster)
    val count = raster.width * raster.height
    // Three components are converted where they are: another array of this size is what a large photograph has no room for.
    val pixels = if (bands == 3) samples else ByteArray(count * 3)
    when (colours) {
        JpegColours.RGB -> Unit
        JpegColours.YCC -> for (start in 0 until count * 3 step 3) convertYcc(samples, start, pixels, start)
        JpegColours.GREY -> for (index in pixels.indices) pixels[index] = samples[index / 3]
        JpegColours.CMYK -> for (index in 0 until count) convertCmyk(samples, index * 4, pixels, index * 3)
        JpegColours.YCCK -> for (index in 0 until count) {
            convertYcc(samples, index * 4, samples, index * 4)
            convertCmyk(samples, index * 4, pixels, index * 3)
        }
    }
    return RgbImage(raster.width, raster.height, pixels)
}

private fun interleaved(raster: Raster): ByteArray {
    val model = raster.sampleModel as PixelInterleavedSampleModel
    val buffer = raster.dataBuffer as DataBufferByte
    check(model.bandOffsets.contentEquals(IntArray(raster.numBands) { it }) && model.pixelStride == raster.numBands)
    check(model.scanlineStride == raster.width * raster.numBands && buffer.offset == 0)
    return buffer.data
}

// libjpeg's tables of the parts that Cb and Cr have in red, green and blue, in units of 2^-16 where they are not yet rounded.
private val RED_OF_CR = IntArray(256) { (91881 * (it - 128) + 32768) shr 16 }
private val BLUE_OF_CB = IntArray(256) { (116130 * (it - 128) + 32768) shr 16 }
private val GREEN_OF_CR = IntArray(256) { -46802 * (it - 128) }
private val GREEN_OF_CB = IntArray(256) { -22554 * (it - 128) + 32768 }

private fun convertYcc(from: ByteArray, source: Int, to: ByteArray, target: Int) {
    val y = from[source].toInt() and 0xff
    val cb = from[source + 1].toInt() and 0xff
    val cr = from[source + 2].toInt() and 0xff
    to[target] = clip(y + RED_OF_CR[cr])
    to[target + 1] = clip(y + ((GREEN_OF_CB[cb] + GREEN_OF_CR[cr]) shr 16))
    to[target + 2] = clip(y + BLUE_OF_CB[cb])
}

/** Files of four components hold 255 minus the ink, and so does what [convertYcc] makes of YCCK: Adobe's way. */
private fun convertCmyk(from: ByteArray, source: Int, to: ByteArray, target: Int) {
    val paper = from[source + 3].toInt() and 0xff
    for (channel in 0 until 3) to[target + channel] = inked(255 - (from[source + channel].toInt() and 0xff), paper)
}
