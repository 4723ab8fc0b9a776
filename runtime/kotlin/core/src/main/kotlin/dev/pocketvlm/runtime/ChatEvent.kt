package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.tiling.TilePlan

/** What happens while an answer is made, in this order: [Planned], any number of [Text], [Finished]. */
public sealed interface ChatEvent {
    /** The prompt's images have been opened; a plan each, in their order. */
    public data class Planned(val tilePlans: List<TilePlan>) : ChatEvent

    /** The next piece of the answer, never empty, never half of a character. */
    public data class Text(val piece: String) : ChatEvent

    /**
     * The answer is complete, or was stopped.
     *
     * @property text all pieces together.
     * @property tokenIds the answer's tokens, without the stop token.
     */
    public data class Finished(
        val text: String,
        val tokenIds: List<Int>,
        val tilePlans: List<TilePlan>,
        val metrics: Metrics,
    ) : ChatEvent
}

/**
 * How to answer. A null takes the checkpoint's default.
 *
 * @property maxNewTokens the answer ends there at the latest.
 * @property temperature 0 takes the most likely token.
 * @property topK keep so many of the most likely tokens; 0 keeps all.
 * @property topP keep the fewest most likely tokens that have this much probability together; 1 keeps all.
 * @property minP keep tokens at least this many times as likely as the most likely one; 0 keeps all.
 * @property repetitionPenalty above 1, tokens that occur in the context become less likely.
 * @property seed the same seed gives the same draws; null is different each time.
 * @property stop texts that end the answer; they are not part of it.
 */
public data class ChatOptions(
    val maxNewTokens: Int = 256,
    val temperature: Double? = null,
    val topK: Int? = null,
    val topP: Double? = null,
    val minP: Double? = null,
    val repetitionPenalty: Double? = null,
    val seed: Long? = null,
    val stop: List<String> = emptyList(),
)
