package dev.pocketvlm.runtime.sampler

import kotlin.math.exp

// numpy's arithmetic where it is not the obvious one: float32 `exp`, and sums.

private const val LOG2_E = 1.4426950408889634f
private const val LN2_HIGH = -6.93145752e-1f
private const val LN2_LOW = -1.42860677e-6f

/** Adding and subtracting 1.5 * 2^23 rounds a small float to the nearest integer. */
private const val ROUNDER = 12582912f

/** Below this the result is less than half of the smallest float. */
private const val EXP_UNDERFLOW = -103.97208404541015625f

/**
 * float32 exponential of [x] <= 0, bit for bit what numpy computes on x86-64 with AVX2 or AVX-512. That differs from the
 * correctly rounded value in two of five arguments (by up to 2.5 units in the last place), which would move the borders
 * of top-p and min-p now and then; `Math.exp` would therefore not do.
 *
 * x = k ln 2 + r with |r| <= ln 2 / 2, and e^r is a quotient of polynomials of degree 5 and 2.
 */
internal fun expf(x: Float): Float {
    if (x <= EXP_UNDERFLOW) return 0f
    val power = (x * LOG2_E + ROUNDER) - ROUNDER
    val rest = fma(power, LN2_LOW, fma(power, LN2_HIGH, x))
    var above = fma(5.082762527590693718096e-04f, rest, 6.757896990527504603057e-03f)
    above = fma(above, rest, 5.114512081637298353406e-02f)
    above = fma(above, rest, 2.473615434895520810817e-01f)
    above = fma(above, rest, 7.257664613233124478488e-01f)
    above = fma(above, rest, 9.999999999980870924916e-01f)
    var below = fma(2.159509375685829852307e-02f, rest, -2.742335390411667452936e-01f)
    below = fma(below, rest, 1f)
    return Math.scalb(above / below, power.toInt())
}

/**
 * a * b + c, rounded once, for results that are not subnormal. `Math.fma` is newer than Android 8.
 *
 * The product of two floats is exact in a double; the sum is rounded. The second rounding, to float, can only go wrong
 * where that sum lies in the middle between two floats: there, what was lost decides.
 */
internal fun fma(a: Float, b: Float, c: Float): Float {
    val product = a.toDouble() * b
    val sum = product + c
    val bits = sum.toRawBits()
    if (bits and BELOW_FLOAT != MIDDLE) return sum.toFloat()
    val shifted = sum - product
    val lost = (product - (sum - shifted)) + (c - shifted)
    if (lost == 0.0) return sum.toFloat()
    return Double.fromBits(if ((lost > 0) == (sum > 0)) bits + 1 else bits - 1).toFloat()
}

/** The bits of a double that a float has no room for, and their value in the middle between two floats. */
private const val BELOW_FLOAT = (1L shl 29) - 1
private const val MIDDLE = 1L shl 28

/** Sum in the order of numpy's pairwise summation: eight running sums in blocks of 128. */
internal fun pairwiseSum(values: FloatArray, start: Int = 0, count: Int = values.size): Float {
    if (count < 8) {
        var sum = -0f
        for (index in start until start + count) sum += values[index]
        return sum
    }
    if (count > PAIRWISE_BLOCK) {
        val half = (count / 2).let { it - it % 8 }
        return pairwiseSum(values, start, half) + pairwiseSum(values, start + half, count - half)
    }
    val sums = values.copyOfRange(start, start + 8)
    val whole = start + count - count % 8
    for (index in start + 8 until whole) sums[(index - start) and 7] += values[index]
    var sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))
    for (index in whole until start + count) sum += values[index]
    return sum
}

/** The same for doubles. */
internal fun pairwiseSum(values: DoubleArray, start: Int = 0, count: Int = values.size): Double {
    if (count < 8) {
        var sum = -0.0
        for (index in start until start + count) sum += values[index]
        return sum
    }
    if (count > PAIRWISE_BLOCK) {
        val half = (count / 2).let { it - it % 8 }
        return pairwiseSum(values, start, half) + pairwiseSum(values, start + half, count - half)
    }
    val sums = values.copyOfRange(start, start + 8)
    val whole = start + count - count % 8
    for (index in start + 8 until whole) sums[(index - start) and 7] += values[index]
    var sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))
    for (index in whole until start + count) sum += values[index]
    return sum
}

private const val PAIRWISE_BLOCK = 128

/** Probabilities of [scores], of which at least one is finite. */
internal fun softmax(scores: FloatArray): FloatArray {
    val highest = scores.max()
    val shares = FloatArray(scores.size) { expf(scores[it] - highest) }
    val sum = pairwiseSum(shares)
    for (index in shares.indices) shares[index] /= sum
    return shares
}

/** Probabilities in double precision. */
internal fun softmax(scores: DoubleArray): DoubleArray {
    val highest = scores.max()
    val shares = DoubleArray(scores.size) { exp(scores[it] - highest) }
    val sum = pairwiseSum(shares)
    for (index in shares.indices) shares[index] /= sum
    return shares
}
