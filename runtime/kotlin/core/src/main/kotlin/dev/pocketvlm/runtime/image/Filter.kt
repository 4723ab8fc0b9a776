package dev.pocketvlm.runtime.image

import dev.pocketvlm.runtime.Resample
import kotlin.math.PI
import kotlin.math.abs
import kotlin.math.sin

/** A kernel of Pillow's: its value at x, and beyond which |x| it is 0. */
internal enum class Filter(val support: Double) {
    BILINEAR(1.0) {
        override fun at(x: Double): Double = maxOf(0.0, 1 - abs(x))
    },
    BICUBIC(2.0) {
        override fun at(x: Double): Double {
            val distance = abs(x)
            return when {
                distance < 1 -> ((SHARPNESS + 2) * distance - (SHARPNESS + 3)) * distance * distance + 1
                distance < 2 -> (((distance - 5) * distance + 8) * distance - 4) * SHARPNESS
                else -> 0.0
            }
        }
    },
    LANCZOS(3.0) {
        override fun at(x: Double): Double = if (x >= -3 && x < 3) sinc(x) * sinc(x / 3) else 0.0
    };

    abstract fun at(x: Double): Double

    companion object {
        private const val SHARPNESS = -0.5

        private fun sinc(x: Double) = if (x == 0.0) 1.0 else sin(x * PI) / (x * PI)

        fun of(resample: Resample): Filter = when (resample) {
            Resample.BILINEAR -> BILINEAR
            Resample.BICUBIC -> BICUBIC
            Resample.LANCZOS -> LANCZOS
        }
    }
}

/**
 * Along one axis: which input pixels each output pixel is made of, and their weights.
 *
 * @property first first input pixel of each output pixel.
 * @property count how many there are, at most [taps].
 * @property weights [taps] for each output pixel, in units of 2^-[PRECISION].
 */
internal class Weights private constructor(
    val taps: Int, val first: IntArray, val count: IntArray, val weights: IntArray,
) {
    /** One beyond the last input pixel of all. */
    val end: Int get() = first.last() + count.last()

    companion object {
        /** 8 bits are for the result, and two for what negative weights add to it. */
        const val PRECISION = 32 - 8 - 2

        /**
         * The weights that scale [inputSize] pixels to [outputSize], for output pixels from [start] on, [length] of them.
         * The order of the operations is Pillow's, so that every weight is.
         */
        fun of(filter: Filter, inputSize: Int, outputSize: Int, start: Int, length: Int): Weights {
            val scale = inputSize.toDouble() / outputSize
            val stretch = maxOf(scale, 1.0)
            val support = filter.support * stretch
            val taps = Math.ceil(support).toInt() * 2 + 1
            val result = Weights(taps, IntArray(length), IntArray(length), IntArray(Math.multiplyExact(length, taps)))
            val exact = DoubleArray(taps)
            for (index in 0 until length) {
                val center = (start + index + 0.5) * scale
                val first = maxOf(0, (center - support + 0.5).toInt())
                val count = minOf(inputSize, (center + support + 0.5).toInt()) - first
                var sum = 0.0
                for (tap in 0 until count) {
                    exact[tap] = filter.at((tap + first - center + 0.5) * (1.0 / stretch))
                    sum += exact[tap]
                }
                for (tap in 0 until count) {
                    val weight = if (sum == 0.0) exact[tap] else exact[tap] / sum
                    val scaled = weight * (1 shl PRECISION)
                    result.weights[index * taps + tap] = (if (weight < 0) scaled - 0.5 else scaled + 0.5).toInt()
                }
                result.first[index] = first
                result.count[index] = count
            }
            return result
        }
    }
}
