package dev.pocketvlm.desktop

import dev.pocketvlm.runtime.image.ImageCodec
import dev.pocketvlm.runtime.image.ImageDecoder
import dev.pocketvlm.runtime.image.RgbImage
import java.awt.image.BufferedImage
import java.io.ByteArrayOutputStream
import javax.imageio.IIOImage
import javax.imageio.ImageIO
import javax.imageio.ImageWriteParam
import javax.imageio.ImageWriter

/** [ImageIoDecoder], and the JDK's writers. */
public class ImageIoCodec : ImageDecoder by ImageIoDecoder(), ImageCodec {
    override fun encode(image: RgbImage, jpeg: Boolean): ByteArray {
        val writer = ImageIO.getImageWritersByFormatName(if (jpeg) "jpeg" else "png").next()
        try {
            return encode(writer, buffered(image), jpeg)
        } finally {
            writer.dispose()
        }
    }

    private fun encode(writer: ImageWriter, image: BufferedImage, jpeg: Boolean): ByteArray {
        val settings = writer.defaultWriteParam
        if (jpeg) {
            settings.compressionMode = ImageWriteParam.MODE_EXPLICIT
            settings.compressionQuality = JPEG_QUALITY
        }
        val content = ByteArrayOutputStream()
        ImageIO.createImageOutputStream(content).use { output ->
            writer.output = output
            writer.write(null, IIOImage(image, null, null), settings)
        }
        return content.toByteArray()
    }

    private fun buffered(image: RgbImage): BufferedImage {
        val buffered = BufferedImage(image.width, image.height, BufferedImage.TYPE_INT_RGB)
        val row = IntArray(image.width)
        for (y in 0 until image.height) {
            for (x in 0 until image.width) {
                val start = (y * image.width + x) * 3
                row[x] = (byte(image, start) shl 16) or (byte(image, start + 1) shl 8) or byte(image, start + 2)
            }
            buffered.setRGB(0, y, image.width, 1, row, 0, image.width)
        }
        return buffered
    }

    private fun byte(image: RgbImage, index: Int): Int = image.pixels[index].toInt() and 255

    private companion object {
        const val JPEG_QUALITY = 0.95f
    }
}
