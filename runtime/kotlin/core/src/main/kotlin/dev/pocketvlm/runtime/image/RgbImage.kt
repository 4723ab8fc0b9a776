package dev.pocketvlm.runtime.image

import dev.pocketvlm.runtime.ImageException
import java.security.MessageDigest

/**
 * An upright picture of 8-bit RGB.
 *
 * @property pixels width * height * 3 bytes, row by row, red first; not copied, and not to be changed.
 * @throws ImageException no pixels, or [pixels] of another size.
 */
public class RgbImage(public val width: Int, public val height: Int, public val pixels: ByteArray) {
    init {
        if (width < 1 || height < 1) {
            throw ImageException("the image has no pixels (${width}x$height)", "give an image of at least one pixel")
        }
        if (pixels.size.toLong() != width.toLong() * height * 3) {
            throw ImageException("${pixels.size} bytes are no image of ${width}x$height", "give width * height * 3 bytes, RGB")
        }
    }

    /** SHA-256 (hexadecimal) of "WIDTHxHEIGHT\n" and [pixels]: equal for equal pixels only, and equal to Python's. */
    public fun digest(): String {
        val digest = MessageDigest.getInstance("SHA-256")
        digest.update("${width}x$height\n".toByteArray())
        digest.update(pixels)
        return digest.digest().joinToString("") { "%02x".format(it) }
    }
}
