package dev.pocketvlm.runtime.sampler

import dev.pocketvlm.runtime.EnvironmentException
import java.nio.FloatBuffer
import java.security.SecureRandom

/**
 * Draws the tokens of one answer: repetition penalty, temperature, top-k, top-p, min-p, as `runtime/sampler.py` and
 * transformers' `generate`. For one thread.
 *
 * The same seed, options and logits draw the tokens that the Python runtime draws on x86-64: random numbers and every
 * float32 step are equal bit for bit. Only the last step is not: the probabilities that are drawn from come from a float64
 * `exp` that numpy and each platform round in their own way, by one unit in the last place. A draw differs where the random
 * number falls within some 1e-16 of the border between two tokens: with a whole vocabulary left to draw from, once in
 * about 1e10 draws, and with 50 tokens left once in 1e14.
 *
 * On other processors numpy itself computes float32 `exp` differently (this class does not), and a token that lies exactly
 * at the border of top-p or min-p can be kept by one and not by the other.
 *
 * @param options how to choose.
 * @param context token ids of the prompt, for the repetition penalty.
 */
public class Sampler(private val options: SamplingOptions, context: Iterable<Int> = emptyList()) {
    private val generator = Pcg64(options.seed ?: (SecureRandom().nextLong() ushr 1))
    private val penalizes = options.repetitionPenalty != 1.0
    private val seen = if (penalizes) context.toHashSet() else HashSet()
    private var scores = FloatArray(0)

    /**
     * The next token for logits [vocabulary]: those from the buffer's position to its limit, which are left as they are.
     *
     * @throws EnvironmentException the logits are not numbers.
     */
    public fun sample(logits: FloatBuffer): Int {
        if (scores.size != logits.remaining()) scores = FloatArray(logits.remaining())
        logits.duplicate().get(scores)
        return next()
    }

    /** The same for an array. */
    public fun sample(logits: FloatArray): Int {
        if (!penalizes && options.temperature == 0.0) return mostLikely(logits)
        scores = if (scores.size == logits.size) logits.copyInto(scores) else logits.copyOf()
        return next()
    }

    private fun next(): Int {
        if (penalizes) penalizeRepetition(scores, seen, options.repetitionPenalty.toFloat())
        var token = mostLikely(scores)
        if (options.temperature > 0) {
            val temperature = options.temperature.toFloat()
            for (index in scores.indices) scores[index] /= temperature
            keepProbable(scores, options)
            token = draw()
        }
        if (penalizes) seen.add(token)
        return token
    }

    /** The first of the highest values. NaN counts as the highest. */
    private fun mostLikely(values: FloatArray): Int {
        var best = 0
        var highest = Float.NEGATIVE_INFINITY
        for (index in values.indices) {
            val value = values[index]
            if (!(value <= highest)) {
                best = index
                highest = value
                if (value.isNaN()) break
            }
        }
        if (!highest.isFinite()) {
            throw EnvironmentException("the decoder's logits are not finite numbers", "run `pocketvlm verify` on the bundle")
        }
        return best
    }

    private fun draw(): Int {
        val candidates = candidates(scores)
        val cumulative = softmax(DoubleArray(candidates.size) { scores[candidates[it]].toDouble() })
        for (index in 1 until cumulative.size) cumulative[index] += cumulative[index - 1]
        val point = generator.nextDouble() * cumulative.last()
        val drawn = cumulative.indexOfFirst { it > point }
        return candidates[if (drawn < 0) candidates.size - 1 else drawn]
    }
}
