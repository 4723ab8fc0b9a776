package dev.pocketvlm.runtime.sampler

import dev.pocketvlm.runtime.Manifest
import dev.pocketvlm.runtime.UsageException

/**
 * How the next token is chosen.
 *
 * @property temperature 0 takes the most likely token.
 * @property topK keep so many of the most likely tokens; 0 keeps all.
 * @property topP keep the fewest most likely tokens that have this much probability together; 1 keeps all.
 * @property minP keep tokens at least this many times as likely as the most likely one; 0 keeps all.
 * @property repetitionPenalty above 1, tokens that occur in the context become less likely (CTRL, arXiv:1909.05858).
 * @property seed the same seed, options and logits give the same tokens; null is different each time.
 * @throws UsageException a value outside its range.
 */
public data class SamplingOptions(
    val temperature: Double = 0.0,
    val topK: Int = 0,
    val topP: Double = 1.0,
    val minP: Double = 0.0,
    val repetitionPenalty: Double = 1.0,
    val seed: Long? = null,
) {
    init {
        val warm = temperature >= Manifest.LEAST_TEMPERATURE && temperature < Double.POSITIVE_INFINITY
        ensure("temperature", temperature, temperature == 0.0 || warm, "0, or a finite number of 0.0001 or more")
        ensure("top_k", topK, topK >= 0, "0 or more")
        ensure("top_p", topP, topP > 0 && topP <= 1, "above 0 and at most 1")
        ensure("min_p", minP, minP in 0.0..1.0, "0 to 1")
        val penalty = repetitionPenalty > 0 && repetitionPenalty < Double.POSITIVE_INFINITY
        ensure("repetition_penalty", repetitionPenalty, penalty, "above 0")
        ensure("seed", seed, seed == null || seed >= 0, "0 or more")
    }

    private fun ensure(name: String, value: Number?, fits: Boolean, wanted: String) {
        if (!fits) throw UsageException("$name is $value", "it must be $wanted")
    }
}
