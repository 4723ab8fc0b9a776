package dev.pocketvlm.runtime.image

import java.io.ByteArrayInputStream
import java.io.InputStream

/** The formats that the Python runtime reads, in the order in which messages list them. */
public enum class ImageFormat { PNG, JPEG, WEBP, BMP, GIF, TIFF }

/** What the components of a JPEG are, by libjpeg's rules. */
public enum class JpegColours { GREY, YCC, RGB, CMYK, YCCK }

/**
 * An image file whose header has been read and found acceptable.
 *
 * @property name stands for the file in messages.
 * @property source an [ImageSource.File] or [ImageSource.Bytes].
 * @property width as the pixels are stored, before [orientation] is applied.
 * @property orientation EXIF's, 1 to 8; [CheckedImageDecoder] applies it.
 * @property jpegColours null for other formats.
 */
public class ImageFile internal constructor(
    public val name: String,
    public val source: ImageSource,
    public val format: ImageFormat,
    public val width: Int,
    public val height: Int,
    public val orientation: Int,
    public val jpegColours: JpegColours?,
) {
    /** The file from its beginning. */
    public fun open(): InputStream = when (source) {
        is ImageSource.File -> source.file.inputStream().buffered()
        is ImageSource.Bytes -> ByteArrayInputStream(source.bytes)
        is ImageSource.Pixels -> error("pixels are no file")
    }
}
