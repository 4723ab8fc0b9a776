package dev.pocketvlm.runtime.tokenizer

import dev.pocketvlm.runtime.PromptException

/**
 * Ends a stream of text at the string that is complete first, in whichever pieces the text comes.
 *
 * Text that may become a stop string is held back until it is clear. A stop string is never part of the output. Not for use
 * by several threads at once.
 *
 * @param stops the strings; none may be empty.
 * @throws PromptException an empty stop string.
 */
public class StopStrings(stops: List<String>) {
    private val stops: List<String> = stops.toList()
    private var held = ""
    private var stopped = false

    init {
        if (this.stops.any { it.isEmpty() }) {
            throw PromptException("stop strings must be a list of texts that are not empty", "leave the empty one out")
        }
    }

    /** Text that may be shown, and whether a stop string has been found. */
    public data class Shown(val text: String, val stopped: Boolean)

    /** Adds text. */
    public fun push(text: String): Shown {
        if (stopped) return Shown("", true)
        if (stops.isEmpty()) return Shown(text, false)
        held += text
        val first = stops.mapNotNull(::occurrence).minWithOrNull(compareBy({ it.last }, { it.first }))
        if (first != null) {
            val shown = held.substring(0, first.first)
            held = ""
            stopped = true
            return Shown(shown, true)
        }
        val begin = stops.minOf(::beginOfPossible)
        val shown = held.substring(0, begin)
        held = held.substring(begin)
        return Shown(shown, false)
    }

    /** The text that was held back and did not become a stop string. */
    public fun finish(): String = held.also { held = "" }

    private fun occurrence(stop: String): IntRange? =
        held.indexOf(stop).takeIf { it >= 0 }?.let { it until it + stop.length }

    /** Where the longest tail of the held text begins that `stop` begins with. */
    private fun beginOfPossible(stop: String): Int =
        (maxOf(0, held.length - stop.length + 1) until held.length).find { stop.startsWith(held.substring(it)) } ?: held.length
}
