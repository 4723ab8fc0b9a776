package dev.pocketvlm.runtime.image

import dev.pocketvlm.runtime.Resample

/** The part of a scaled picture that is wanted. */
internal data class Window(val left: Int, val top: Int, val width: Int, val height: Int)

/**
 * `Image.resize` of Pillow 13 for 8-bit RGB, bit for bit: one pass along each axis, each rounded to 8 bits.
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

    /** Pillow 12 and older always began across, which differs by a level here and there. */
    private val downFirst = image.height > height && image.height - height > 2 * (image.width - width)

    /** The columns of the picture that the window is made of: from the first one, so many values. */
    private val firstColumn = across?.first?.first() ?: window.left
    private val inputs = (across?.end ?: (window.left + window.width)).minus(firstColumn) * 3
    private val outputs = window.width * 3
    private val scaled = IntArray(outputs)

    /** The window's pixels, written to rows of [stride] bytes of [out], beginning at [offset]. */
    fun run(out: ByteArray, offset: Int, stride: Int) {
        if (down != null) return scaleDown(down, out, offset, stride)
        val row = IntArray(inputs)
        for (y in 0 until window.height) {
            load(window.top + y, row)
            store(if (across == null) row else scaleAcross(across, row, scaled), out, offset + y * stride)
        }
    }

    private fun scaleDown(weights: Weights, out: ByteArray, offset: Int, stride: Int) {
        val first = if (downFirst) null else across
        val second = if (downFirst) across else null
        val values = if (first == null) inputs else outputs
        val ring = Array(weights.taps) { IntArray(values) }
        val row = if (first == null) null else IntArray(inputs)
        val sums = IntArray(values)
        var next = 0
        for (y in 0 until window.height) {
            val start = weights.first[y]
            val count = weights.count[y]
            next = maxOf(next, start)
            while (next < start + count) {
                val slot = ring[next % ring.size]
                load(next, row ?: slot)
                if (first != null && row != null) scaleAcross(first, row, slot)
                next++
            }
            sums.fill(HALF)
            for (tap in 0 until count) add(sums, ring[(start + tap) % ring.size], weights.weights[y * weights.taps + tap])
            for (index in sums.indices) sums[index] = rounded(sums[index])
            store(if (second == null) sums else scaleAcross(second, sums, scaled), out, offset + y * stride)
        }
    }

    private fun load(y: Int, row: IntArray) {
        val pixels = image.pixels
        val start = (y * image.width + firstColumn) * 3
        for (index in row.indices) row[index] = pixels[start + index].toInt() and 0xff
    }

    private fun store(row: IntArray, out: ByteArray, start: Int) {
        for (index in row.indices) out[start + index] = row[index].toByte()
    }

    // Functions of their own, small enough for the compiler to make vector instructions of them.
    private fun add(sums: IntArray, row: IntArray, weight: Int) {
        for (index in sums.indices) sums[index] += row[index] * weight
    }

    private fun scaleAcross(across: Weights, row: IntArray, result: IntArray): IntArray {
        val weights = across.weights
        for (x in 0 until window.width) {
            var position = (across.first[x] - firstColumn) * 3
            val begin = x * across.taps
            var red = HALF
            var green = HALF
            var blue = HALF
            for (tap in begin until begin + across.count[x]) {
                val weight = weights[tap]
                red += row[position] * weight
                green += row[position + 1] * weight
                blue += row[position + 2] * weight
                position += 3
            }
            result[3 * x] = rounded(red)
            result[3 * x + 1] = rounded(green)
            result[3 * x + 2] = rounded(blue)
        }
        return result
    }

    private fun rounded(sum: Int): Int {
        val value = sum shr Weights.PRECISION
        return if (value < 0) 0 else if (value > 255) 255 else value
    }

    private companion object {
        const val HALF = 1 shl (Weights.PRECISION - 1)
    }
}
