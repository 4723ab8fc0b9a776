package dev.pocketvlm.android

import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Color
import dev.pocketvlm.runtime.EnvironmentException
import dev.pocketvlm.runtime.ImageException
import dev.pocketvlm.runtime.image.CheckedImageDecoder
import dev.pocketvlm.runtime.image.ImageFile
import dev.pocketvlm.runtime.image.ImageCodec
import dev.pocketvlm.runtime.image.ImageFormat
import dev.pocketvlm.runtime.image.ImageSource
import dev.pocketvlm.runtime.image.RgbImage
import dev.pocketvlm.runtime.image.overWhite
import java.io.ByteArrayOutputStream
import java.io.IOException
import java.nio.ByteBuffer

/**
 * Image files by Android's own decoders: JPEG, WEBP and BMP; PNG and GIF are [CheckedImageDecoder]'s. There is no TIFF.
 *
 * The samples are taken as they are stored: neither converted to another colour space, which Pillow does not do either, nor
 * multiplied by their alpha, nor scaled to the screen's density. BMP of 16 bits for a pixel may differ from Pillow by a level.
 *
 * Beside the result, 4 bytes for each pixel are held while the file is decoded, and once more while they are copied out of the
 * bitmap; both lie outside the Java heap.
 */
public class BitmapCodec : ImageCodec {
    private val decoder = BitmapDecoder()

    override fun decode(source: ImageSource, maxPixels: Long): RgbImage = decoder.decode(source, maxPixels)

    override fun encode(image: RgbImage, jpeg: Boolean): ByteArray {
        val bitmap = Bitmap.createBitmap(image.width, image.height, Bitmap.Config.ARGB_8888)
        try {
            val row = IntArray(image.width)
            for (y in 0 until image.height) {
                for (x in 0 until image.width) row[x] = argb(image.pixels, (y * image.width + x) * 3)
                bitmap.setPixels(row, 0, image.width, 0, y, image.width, 1)
            }
            val file = ByteArrayOutputStream()
            val format = if (jpeg) Bitmap.CompressFormat.JPEG else Bitmap.CompressFormat.PNG
            if (!bitmap.compress(format, JPEG_QUALITY, file)) {
                throw EnvironmentException("Android cannot write a $format of ${image.width}x${image.height} pixels")
            }
            return file.toByteArray()
        } finally {
            bitmap.recycle()
        }
    }

    private fun argb(pixels: ByteArray, at: Int): Int =
        (255 shl 24) or (byte(pixels, at) shl 16) or (byte(pixels, at + 1) shl 8) or byte(pixels, at + 2)

    private fun byte(pixels: ByteArray, at: Int): Int = pixels[at].toInt() and 255

    private companion object {
        const val JPEG_QUALITY = 95
    }
}

private class BitmapDecoder : CheckedImageDecoder() {
    override fun decodePixels(image: ImageFile): RgbImage {
        if (image.format == ImageFormat.TIFF) {
            throw ImageException("${image.name} is a TIFF image, which Android cannot read", "convert it to PNG or JPEG")
        }
        checkComplete(image)
        val options = BitmapFactory.Options().apply {
            inPreferredConfig = Bitmap.Config.ARGB_8888
            inScaled = false
            inPremultiplied = false
            // Without one, the pixels stay in the colour space of the file.
            inPreferredColorSpace = null
        }
        val bitmap = image.open().use { BitmapFactory.decodeStream(it, null, options) }
            ?: throw IOException("Android cannot decode it")
        val samples = try {
            check(bitmap.width == image.width && bitmap.height == image.height && bitmap.config == Bitmap.Config.ARGB_8888) {
                "decoded to ${bitmap.width}x${bitmap.height} pixels of ${bitmap.config}"
            }
            SharedMemoryBuffers.allocate(bitmap.width * bitmap.height * SAMPLES).also(bitmap::copyPixelsToBuffer)
        } finally {
            bitmap.recycle()
        }
        try {
            // Pillow takes the fourth byte of a BMP's pixels for padding.
            val opaque = image.format != ImageFormat.WEBP
            return RgbImage(image.width, image.height, rgb(samples, image.width, image.height, opaque))
        } finally {
            SharedMemoryBuffers.free(samples)
        }
    }

    /** RGB of rows of four samples, with white behind what is not [opaque]. */
    private fun rgb(samples: ByteBuffer, width: Int, height: Int, opaque: Boolean): ByteArray {
        val pixels = ByteArray(width * height * 3)
        val row = ByteArray(width * SAMPLES)
        var target = 0
        samples.rewind()
        repeat(height) {
            samples.get(row)
            for (source in row.indices step SAMPLES) {
                val alpha = if (opaque) 255 else row[source + 3].toInt() and 255
                for (place in order) {
                    val value = row[source + place]
                    pixels[target++] = if (alpha == 255) value else overWhite(value.toInt() and 255, alpha).toByte()
                }
            }
        }
        return pixels
    }

    private companion object {
        const val SAMPLES = 4

        /** Where red, green and blue lie within a pixel: first to third on Android, the other way round on desktops. */
        val order: IntArray by lazy {
            val pixel = Bitmap.createBitmap(1, 1, Bitmap.Config.ARGB_8888)
            pixel.eraseColor(Color.rgb(1, 2, 3))
            val samples = ByteBuffer.allocate(SAMPLES).also(pixel::copyPixelsToBuffer).array()
            pixel.recycle()
            IntArray(3) { channel -> samples.indexOf((channel + 1).toByte()) }
        }
    }
}
