package dev.pocketvlm.runtime.image

import dev.pocketvlm.runtime.Fit
import dev.pocketvlm.runtime.ImageSpec
import dev.pocketvlm.runtime.TensorType
import dev.pocketvlm.runtime.TilingSpec
import dev.pocketvlm.runtime.engine.Tensor
import dev.pocketvlm.runtime.tiling.TilePlan
import java.nio.Buffer
import java.nio.FloatBuffer

/**
 * From a picture to the numbers that the vision encoder reads: every float equals `runtime/image.py`'s, and so that of
 * transformers' image processors with the Pillow backend.
 *
 * Beside the picture and the result, the fitted picture is held (3 bytes per pixel of the grid) and a few rows.
 */
public object ImagePreprocessor {
    /**
     * Fit the image to the plan's grid, cut it into tiles and normalise them.
     *
     * [Fit.PAD] scales to fit, ratio kept, and centres on `spec.background` (LLaVA-NeXT); [Fit.STRETCH] scales both sides
     * to the grid (SigLIP, InternVL); [Fit.CROP] scales to cover the grid and cuts out the centre (CLIP). 640 x 480 on a
     * 2x2 grid of 336 pixels: PAD scales to 672 x 504 with 84 rows of background above and below, CROP to 896 x 672 and
     * drops 112 columns left and right. The thumbnail is the whole image stretched to one tile, or cropped to it with CROP.
     *
     * @param thumbnailFirst whether a thumbnail comes before the tiles or after them.
     * @return float32 [plan.encodedTiles, 3, tileSize, tileSize], tiles row by row.
     */
    public fun makeTiles(
        image: RgbImage,
        plan: TilePlan,
        tiling: TilingSpec,
        spec: ImageSpec,
        thumbnailFirst: Boolean,
    ): Tensor {
        val size = tiling.tileSize
        val (cols, rows) = plan.grid
        val tiles = Tensor.zeros(TensorType.FLOAT32, listOf(plan.encodedTiles, 3, size, size))
        val normaliser = Normaliser(spec, size, tiles.floats())
        val first = if (plan.thumbnail && thumbnailFirst) 1 else 0
        val canvas = fit(image, cols * size, rows * size, tiling.fit, spec)
        for (index in 0 until plan.tiles) {
            normaliser.write(canvas, index % cols * size, index / cols * size, first + index)
        }
        if (plan.thumbnail) {
            val shrunk = fit(image, size, size, if (tiling.fit == Fit.CROP) Fit.CROP else Fit.STRETCH, spec)
            normaliser.write(shrunk, 0, 0, if (thumbnailFirst) 0 else plan.tiles)
        }
        return tiles
    }

    /** The picture as it fills [width] x [height] pixels. */
    internal fun fit(image: RgbImage, width: Int, height: Int, fit: Fit, spec: ImageSpec): RgbImage = when (fit) {
        Fit.STRETCH -> resize(image, width, height, spec, Window(0, 0, width, height))
        Fit.CROP -> cover(image, width, height, spec)
        Fit.PAD -> pad(image, width, height, spec)
    }

    private fun resize(image: RgbImage, width: Int, height: Int, spec: ImageSpec, window: Window): RgbImage {
        val pixels = ByteArray(window.width * window.height * 3)
        Resampler(image, width, height, spec.resample, window).run(pixels, 0, window.width * 3)
        return RgbImage(window.width, window.height, pixels)
    }

    /** LLaVA-NeXT's rounding (`get_patch_output_size`): the free side up, the odd row of padding below or right. */
    private fun pad(image: RgbImage, width: Int, height: Int, spec: ImageSpec): RgbImage {
        val scaleWidth = width.toDouble() / image.width
        val scaleHeight = height.toDouble() / image.height
        var innerWidth = width
        var innerHeight = height
        if (scaleWidth < scaleHeight) {
            innerHeight = minOf(Math.ceil(image.height * scaleWidth).toInt(), height)
        } else {
            innerWidth = minOf(Math.ceil(image.width * scaleHeight).toInt(), width)
        }
        val pixels = ByteArray(width * height * 3)
        if (spec.background.any { it != 0 }) {
            val colour = ByteArray(3) { spec.background[it].toByte() }
            for (index in pixels.indices) pixels[index] = colour[index % 3]
        }
        val offset = ((height - innerHeight) / 2 * width + (width - innerWidth) / 2) * 3
        Resampler(image, innerWidth, innerHeight, spec.resample, Window(0, 0, innerWidth, innerHeight))
            .run(pixels, offset, width * 3)
        return RgbImage(width, height, pixels)
    }

    /** CLIP's rounding (`get_resize_output_image_size`, `center_crop`): the longer side and the offsets down. */
    private fun cover(image: RgbImage, width: Int, height: Int, spec: ImageSpec): RgbImage {
        var outerWidth = width
        var outerHeight = height
        if (width.toLong() * image.height >= height.toLong() * image.width) {
            outerHeight = (width.toLong() * image.height / image.width).toInt()
        } else {
            outerWidth = (height.toLong() * image.width / image.height).toInt()
        }
        val window = Window((outerWidth - width) / 2, (outerHeight - height) / 2, width, height)
        return resize(image, outerWidth, outerHeight, spec, window)
    }
}

/** Writes tiles as floats, channel by channel: value * rescale, minus mean, divided by std, rounded as transformers rounds. */
private class Normaliser(spec: ImageSpec, private val size: Int, private val out: FloatBuffer) {
    private val tables = Array(3) { channel ->
        FloatArray(256) { value ->
            ((value * spec.rescale).toFloat() - spec.mean[channel].toFloat()) / spec.std[channel].toFloat()
        }
    }
    private val line = FloatArray(size)

    /** The square of [canvas] whose corner is at ([left], [top]) becomes tile number [index]. */
    fun write(canvas: RgbImage, left: Int, top: Int, index: Int) {
        val target = out.duplicate()
        // By its supertype: FloatBuffer.position itself is newer than Android 8.
        (target as Buffer).position(index * 3 * size * size)
        for (channel in 0 until 3) {
            val table = tables[channel]
            for (y in 0 until size) {
                var position = ((top + y) * canvas.width + left) * 3 + channel
                for (x in line.indices) {
                    line[x] = table[canvas.pixels[position].toInt() and 0xff]
                    position += 3
                }
                target.put(line)
            }
        }
    }
}
