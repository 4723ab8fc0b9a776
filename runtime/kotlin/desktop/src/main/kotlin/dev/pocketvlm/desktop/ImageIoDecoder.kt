package dev.pocketvlm.desktop

import dev.pocketvlm.runtime.ImageException
import dev.pocketvlm.runtime.image.CheckedImageDecoder
import dev.pocketvlm.runtime.image.ImageFile
import dev.pocketvlm.runtime.image.ImageFormat
import dev.pocketvlm.runtime.image.ImageSource
import dev.pocketvlm.runtime.image.RgbImage
import java.io.IOException
import javax.imageio.ImageIO
import javax.imageio.ImageReader
import javax.imageio.stream.FileImageInputStream
import javax.imageio.stream.ImageInputStream
import javax.imageio.stream.MemoryCacheImageInputStream

/**
 * Image files by the JDK's own readers: JPEG, BMP and TIFF; PNG and GIF are [CheckedImageDecoder]'s. There is no WEBP.
 *
 * The readers are asked for the samples as they are stored, and colours are converted here by libjpeg's and Pillow's
 * integer formulas: the JDK would apply colour profiles and the gamma of grey, which Pillow does not.
 *
 * Beside the result, BMP and TIFF are held once more while they are read, JPEG is not.
 */
public class ImageIoDecoder : CheckedImageDecoder() {
    override fun decodePixels(image: ImageFile): RgbImage = when (image.format) {
        ImageFormat.JPEG -> read(image, "jpeg") { decodeJpeg(it, checkNotNull(image.jpegColours)) }
        ImageFormat.BMP -> read(image, "bmp") { rgbOf(it.read(0), image.name) }
        ImageFormat.TIFF -> read(image, "tiff") { rgbOf(it.read(0), image.name, colourMap(it)) }
        else -> throw ImageException(
            "${image.name} is a ${image.format} image, which Java on a desktop cannot read", "convert it to PNG or JPEG"
        )
    }

    private fun <T> read(image: ImageFile, format: String, decode: (ImageReader) -> T): T {
        val reader = ImageIO.getImageReadersByFormatName(format).next()
        try {
            stream(image).use { input ->
                // Of metadata, only a TIFF's palette is wanted.
                reader.setInput(input, true, image.format != ImageFormat.TIFF)
                var cutOff: String? = null
                reader.addIIOReadWarningListener { _, warning ->
                    // Other warnings are about damage that libjpeg, and so Pillow, mends.
                    if (warning.startsWith("Truncated File")) cutOff = warning
                }
                return decode(reader).also { if (cutOff != null) throw IOException(cutOff) }
            }
        } finally {
            reader.dispose()
        }
    }

    private fun stream(image: ImageFile): ImageInputStream = when (val source = image.source) {
        is ImageSource.File -> FileImageInputStream(source.file)
        else -> MemoryCacheImageInputStream(image.open())
    }
}
