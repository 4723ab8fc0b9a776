package dev.pocketvlm.android

import android.graphics.Bitmap
import dev.pocketvlm.runtime.image.ImageCodec
import dev.pocketvlm.runtime.image.ImageSource
import dev.pocketvlm.runtime.image.RgbImage
import java.io.ByteArrayOutputStream

/** Image files by Android's own decoders. */
public class BitmapCodec : ImageCodec {
    override fun decode(source: ImageSource, maxPixels: Long): RgbImage = TODO()

    /** A PNG or JPEG file of [pixels], which are RGB, row by row. */
    override fun encode(width: Int, height: Int, pixels: ByteArray, jpeg: Boolean): ByteArray {
        val bitmap = Bitmap.createBitmap(width, height, Bitmap.Config.ARGB_8888)
        try {
            val row = IntArray(width)
            for (y in 0 until height) {
                for (x in 0 until width) row[x] = argb(pixels, 3 * (y * width + x))
                bitmap.setPixels(row, 0, width, 0, y, width, 1)
            }
            val file = ByteArrayOutputStream()
            val format = if (jpeg) Bitmap.CompressFormat.JPEG else Bitmap.CompressFormat.PNG
            check(bitmap.compress(format, QUALITY, file)) { "Android cannot write a $format of ${width}x$height" }
            return file.toByteArray()
        } finally {
            bitmap.recycle()
        }
    }

    private fun argb(pixels: ByteArray, at: Int): Int =
        (0xff shl 24) or (pixels[at].toInt() and 0xff shl 16) or (pixels[at + 1].toInt() and 0xff shl 8) or (pixels[at + 2].toInt() and 0xff)

    private companion object {
        const val QUALITY = 95
    }
}
