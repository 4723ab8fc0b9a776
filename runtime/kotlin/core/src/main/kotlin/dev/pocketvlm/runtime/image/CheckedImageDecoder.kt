package dev.pocketvlm.runtime.image

import dev.pocketvlm.runtime.EnvironmentException
import dev.pocketvlm.runtime.ImageException
import java.io.IOException
import java.io.RandomAccessFile
import java.io.File as JavaFile

/**
 * What the decoders of all platforms have in common. In this order: is there a file, what is its format by its first bytes,
 * what size does its header give, does it hold one picture, then its pixels, then its orientation.
 *
 * PNG and GIF are decoded here, equal to Pillow bit for bit; [decodePixels] has to read what else there is, or refuse it.
 *
 * Memory: the result has 3 bytes for each pixel, up to 300 MB at the usual `max_pixels` of 100 million. PNG needs next to
 * nothing beside it, GIF a third as much. A picture that is stored lying down (orientation 2 to 8) is held twice while it
 * is turned. What a platform's own decoder holds comes on top, and is gone when [decode] returns.
 */
public abstract class CheckedImageDecoder : ImageDecoder {
    final override fun decode(source: ImageSource, maxPixels: Long): RgbImage = when (source) {
        is ImageSource.Pixels -> source.image.also {
            checkSize(it.width.toLong(), it.height.toLong(), "the image", maxPixels)
        }
        is ImageSource.Bytes -> decode(source, ArraySource(source.bytes), "the image data", maxPixels)
        is ImageSource.File -> decodeFile(source, maxPixels)
    }

    /**
     * The pixels as they are stored, not turned, with white behind what is transparent ([overWhite]), and no colour profile
     * applied. JPEG, WEBP, BMP and TIFF.
     *
     * @throws ImageException the format or the kind of pixels is not supported here.
     * @throws Exception any other means that the file is damaged.
     */
    protected abstract fun decodePixels(image: ImageFile): RgbImage

    private fun decodeFile(source: ImageSource.File, maxPixels: Long): RgbImage {
        val file = source.file
        when {
            file.isDirectory -> throw ImageException("$file is a directory, not an image", "name an image file")
            !file.exists() -> throw ImageException("no such image file: $file", "check the path")
            !file.isFile -> throw ImageException("$file is not a regular file", "name an image file")
        }
        return open(file).use { decode(source, it, file.toString(), maxPixels) }
    }

    private fun open(file: JavaFile): ByteSource = try {
        FileSource(RandomAccessFile(file, "r"))
    } catch (error: IOException) {
        throw ImageException("$file cannot be read: ${oneLine(error)}", "check the file and its permissions", error)
    }

    private fun decode(source: ImageSource, file: ByteSource, name: String, maxPixels: Long): RgbImage {
        if (file.length == 0L) throw ImageException("$name is empty", "the file was not written completely; save it again")
        val format = formatOf(file)
            ?: throw ImageException("$name is not an image", "known formats: ${ImageFormat.entries.joinToString()}")
        val header = reading(name, "damaged", "save the image again") { readHeader(format, file) }
        checkSize(header.width, header.height, name, maxPixels)
        if (header.several) {
            throw ImageException("$name holds several frames or pages", "save the one that is meant as a PNG")
        }
        val (width, height) = header.width.toInt() to header.height.toInt()
        val encoded = ImageFile(name, source, format, width, height, header.orientation, header.jpegColours)
        val stored = reading(name, "damaged or incomplete", "save or copy the image again") {
            when (format) {
                ImageFormat.PNG -> PngDecoder(file).decode()
                ImageFormat.GIF -> GifDecoder(file).decode()
                else -> decodePixels(encoded)
            }
        }
        return upright(stored, header.orientation)
    }

    private inline fun <T> reading(name: String, state: String, hint: String, read: () -> T): T = try {
        read()
    } catch (error: ImageException) {
        throw error
    } catch (error: OutOfMemoryError) {
        throw EnvironmentException("there is not enough memory for the pixels of $name", "scale the image down first", error)
    } catch (error: Exception) { // Decoders raise many kinds for damaged data.
        throw ImageException("$name is $state: ${oneLine(error)}", hint, error)
    }

    private fun oneLine(error: Exception): String =
        (error.message ?: error.javaClass.simpleName).replace(Regex("\\s+"), " ")

    public companion object {
        private const val MAX_SIDE_RATIO = 200

        /**
         * Refuse an image by its size in pixels; [name] stands for it in the message.
         *
         * @throws ImageException no pixels, more than [maxPixels], or a side more than 200 times the other.
         */
        public fun checkSize(width: Long, height: Long, name: String, maxPixels: Long) {
            if (width < 1 || height < 1) {
                throw ImageException("$name has no pixels (${width}x$height)", "give an image of at least one pixel")
            }
            // An array is no longer than an Int counts. The product itself may overflow.
            if (height > minOf(maxPixels, MAX_ARRAY / 3) / width) {
                throw ImageException(
                    "$name has ${width}x$height pixels, more than the allowed $maxPixels", "scale the image down first"
                )
            }
            // Scaling one side up by thousands would need gigabytes in between.
            if (maxOf(width, height) > MAX_SIDE_RATIO * minOf(width, height)) {
                throw ImageException(
                    "$name has ${width}x$height pixels: one side is more than $MAX_SIDE_RATIO times the other",
                    "cut the image into parts",
                )
            }
        }

        private const val MAX_ARRAY = Int.MAX_VALUE - 8L
    }
}
