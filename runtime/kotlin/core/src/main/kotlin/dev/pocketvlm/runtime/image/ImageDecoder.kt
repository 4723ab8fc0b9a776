package dev.pocketvlm.runtime.image

import dev.pocketvlm.runtime.ImageException
import java.io.File as JavaFile

/** Where a picture comes from. */
public sealed interface ImageSource {
    /** An image file on disk. */
    public data class File(val file: JavaFile) : ImageSource

    /** The bytes of an image file; not copied, and not to be changed while they are decoded. */
    public class Bytes(public val bytes: ByteArray) : ImageSource

    /** Pixels that are decoded already. */
    public class Pixels(public val image: RgbImage) : ImageSource
}

/**
 * Opens pictures as upright 8-bit RGB, as `load_image` of the Python runtime does.
 *
 * EXIF orientation is applied. Transparent pixels show white behind them. Greyscale of 16 bits is scaled to 8 bits. Colour
 * profiles are ignored. What is wrong with a file is found out before its pixels are decoded, as far as its header tells.
 *
 * Each platform has one; they extend [CheckedImageDecoder], which does what they have in common.
 */
public interface ImageDecoder {
    /**
     * @param maxPixels `image.max_pixels` of the bundle's manifest.
     * @throws ImageException the file is missing, unreadable, empty, damaged, of another format or animated; the image has
     *   too many pixels, a side more than 200 times the other, or a pixel type that has no agreed range.
     */
    public fun decode(source: ImageSource, maxPixels: Long): RgbImage
}
