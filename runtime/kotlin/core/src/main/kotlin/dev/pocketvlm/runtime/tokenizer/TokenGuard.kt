package dev.pocketvlm.runtime.tokenizer

import dev.pocketvlm.runtime.PromptException
import java.security.SecureRandom

/** Whether a control token of an encoding was read from text that is not all trusted. */
internal fun touchesUntrusted(
    encoding: Encoding,
    text: String,
    stretches: List<Stretch>,
    control: Map<Int, String>,
    unknown: Int?,
): Boolean {
    val spans = spans(stretches)
    if (spans.all { it.trusted }) return false
    for (index in 0 until encoding.size) {
        val name = control[encoding.id(index)]
        if (name == null || encoding.isAdded(index)) continue
        // The span of a token that swallows white space around it is wider than the token's own text.
        val place = text.find(name, encoding.begin(index), encoding.end(index))
        if (place < 0 && encoding.id(index) == unknown) continue
        if (place < 0) return true
        val span = spans.last { it.begin <= place }
        if (!span.trusted || place + name.length > span.end) return true
    }
    return false
}

private class Span(val begin: Int, val end: Int, val trusted: Boolean)

/** Where the stretches stand in the whole text; trusted neighbours are one. */
private fun spans(stretches: List<Stretch>): List<Span> {
    val spans = mutableListOf<Span>()
    var begin = 0
    for (stretch in stretches) {
        val end = begin + stretch.text.length
        if (stretch.trusted && spans.lastOrNull()?.trusted == true) {
            spans[spans.lastIndex] = Span(spans.last().begin, end, true)
        } else {
            spans += Span(begin, end, stretch.trusted)
        }
        begin = end
    }
    return spans
}

private fun String.find(part: String, from: Int, to: Int): Int =
    (from..minOf(to, length) - part.length).firstOrNull { startsWith(part, it) } ?: -1

/**
 * A copy of a tokenizer in which control tokens have names that nobody can type.
 *
 * The copy reads the control tokens' own names as plain text, and knows a secret name for each of them. Trusted text is
 * written with the secret names; so both kinds of text are encoded in one call and the seams come out as they do without a
 * guard.
 */
internal class TokenGuard(pipeline: Pipeline, control: List<AddedToken>, unknown: Int?) {
    private val secret = secret()
    private val secretNames = control.withIndex().associate { (index, token) -> token.content to "<|$secret.$index|>" }
    private val seam = "<|$secret|>"
    private val guarded: Pipeline
    private val realIds: Map<Int, Int>
    private val controlIds: Set<Int>
    private val seamId: Int

    /** Longest first, as the tokenizer matches. */
    private val names = secretNames.keys.sortedByDescending { it.length }

    init {
        val added = pipeline.added.skippingSpecial()
            .plus(control.map { it.copy(special = true) })
            .plus(control.map { it.copy(content = secretNames.getValue(it.content), special = false) })
            .plus(listOf(AddedToken(seam, singleWord = false, stripLeft = false, stripRight = false, normalized = false, special = false)))
        guarded = pipeline.withAdded(added)
        realIds = secretNames.entries.associate { (token, name) -> added.id(name)!! to added.id(token)!! }
        controlIds = realIds.values.filter { it != unknown }.toSet()
        seamId = added.id(seam)!!
    }

    /** Token ids; see [Tokenizer.encodeMixed]. */
    fun encode(stretches: List<Stretch>, addTokens: Boolean): IntArray {
        var encoding = encode(stretches, addTokens, ::sameText)
        if (isForged(encoding)) {
            // Merges of a BPE model, or a Unigram or word vocabulary, can build a control token from its letters.
            encoding = encode(stretches, addTokens, ::splitNames)
            if (isForged(encoding)) {
                throw PromptException("the text holds a special token that this tokenizer cannot write as plain text", "remove it")
            }
        }
        return encoding.ids().filter { it != seamId }.map { realIds[it] ?: it }.toIntArray()
    }

    private fun encode(stretches: List<Stretch>, addTokens: Boolean, untrusted: (String) -> String): Encoding {
        val text = stretches.joinToString("") { if (it.trusted) replaceNames(it.text, secretNames::getValue) else untrusted(it.text) }
        return guarded.encode(text, addTokens)
    }

    private fun isForged(encoding: Encoding): Boolean =
        (0 until encoding.size).any { encoding.id(it) in controlIds && !encoding.isAdded(it) }

    private fun sameText(text: String): String = text

    private fun splitNames(text: String): String = replaceNames(text) { name ->
        val first = name.offsetByCodePoints(0, 1)
        name.substring(0, first) + seam + name.substring(first)
    }

    private inline fun replaceNames(text: String, replacement: (String) -> String): String = buildString {
        var at = 0
        while (at < text.length) {
            val name = names.find { text.startsWith(it, at) }
            append(if (name == null) text[at].toString() else replacement(name))
            at += name?.length ?: 1
        }
    }

    private fun secret(): String {
        val bytes = ByteArray(SECRET_BYTES).also(SecureRandom()::nextBytes)
        return bytes.joinToString("") { (it.toInt() and 0xFF).toString(16).padStart(2, '0') }
    }

    private companion object {
        const val SECRET_BYTES = 16
    }
}
