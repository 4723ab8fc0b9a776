package dev.pocketvlm.runtime.image

import dev.pocketvlm.runtime.Resample

/** The part of a scaled picture that is wanted. */
internal data class Window(val left: Int, val top: Int, val width: Int, val height: Int)

/**
 * Pillow's `Image.resize` for 8-bit RGB, bit for bit: a horizontal pass, rounded to 8 bits, then a vertical one.
 *
 * Rows go through one after the other: beside the picture and the result only as many rows are held as one output row is
 * made of. A window costs only the pixels inside it.
 */
internal class Resampler(private val image: RgbImage, width: Int, height: Int, resample: Resample, private val window: Window) {
    // Pillow skips a pass that would not change the size; its weights would be 0 and 1.
    private val across = if (width == image.width) null else {
        Weights.of(Filter.of(resample), image.width, width, window.left, window.width)
    }
    private val down = if (height == image.height) null else {
        Weights.of(Filter.of(resample), image.height, height, window.top, window.height)
    }
    private val values = window.width * 3

    /** The window's pixels, written to rows of [stride] bytes of [out], beginning at [offset]. */
    fun run(out: ByteArray, offset: Int, stride: Int) {
        if (down == null) {
            val row = IntArray(values)
            for (y in 0 until window.height) {
                scaleRow(window.top + y, row)
                val start = offset + y * stride
                for (index in row.indices) out[start + index] = row[index].toByte()
            }
        } else {
            scaleDown(down, out, offset, stride)
        }
    }

    private fun scaleDown(weights: Weights, out: ByteArray, offset: Int, stride: Int) {
        val ring = Array(weights.taps) { IntArray(values) }
        val sums = IntArray(values)
        var next = 0
        for (y in 0 until window.height) {
            val first = weights.first[y]
            val count = weights.count[y]
            next = maxOf(next, first)
            while (next < first + count) {
                scaleRow(next, ring[next % ring.size])
                next++
            }
            sums.fill(HALF)
            for (tap in 0 until count) addRow(sums, ring[(first + tap) % ring.size], weights.weights[y * weights.taps + tap])
            val start = offset + y * stride
            for (index in sums.indices) out[start + index] = rounded(sums[index]).toByte()
        }
    }

    // A function of its own, so that the compiler makes vector instructions of the loop.
    private fun addRow(sums: IntArray, row: IntArray, weight: Int) {
        for (index in sums.indices) sums[index] += row[index] * weight
    }

    /** Row [y] of the picture, scaled horizontally. */
    private fun scaleRow(y: Int, row: IntArray) {
        val pixels = image.pixels
        val start = y * image.width * 3
        if (across == null) {
            val begin = start + window.left * 3
            for (index in row.indices) row[index] = pixels[begin + index].toInt() and 0xff
            return
        }
        val weights = across.weights
        for (x in 0 until window.width) {
            var position = start + across.first[x] * 3
            val begin = x * across.taps
            var red = HALF
            var green = HALF
            var blue = HALF
            for (tap in begin until begin + across.count[x]) {
                val weight = weights[tap]
                red += (pixels[position].toInt() and 0xff) * weight
                green += (pixels[position + 1].toInt() and 0xff) * weight
                blue += (pixels[position + 2].toInt() and 0xff) * weight
                position += 3
            }
            row[3 * x] = rounded(red)
            row[3 * x + 1] = rounded(green)
            row[3 * x + 2] = rounded(blue)
        }
    }

    private fun rounded(sum: Int): Int {
        val value = sum shr Weights.PRECISION
        return if (value < 0) 0 else if (value > 255) 255 else value
    }

    companion object {
        private const val HALF = 1 shl (Weights.PRECISION - 1)
    }
}
