package dev.pocketvlm.runtime.tokenizer

/**
 * A token that is found in the text before the model sees it.
 *
 * @property singleWord not found where a word goes on before or after it.
 * @property stripLeft takes the white space before it along; stripRight that after it.
 * @property normalized looked for in the normalized text, in its own normal form.
 * @property special left out of decoded text.
 */
internal data class AddedToken(
    val content: String,
    val singleWord: Boolean,
    val stripLeft: Boolean,
    val stripRight: Boolean,
    val normalized: Boolean,
    val special: Boolean,
)

/** A piece of text; `id` is that of the added token that it is, or -1. */
internal class Segment(val piece: Piece, val id: Int = -1)

/** The added tokens of a tokenizer. */
internal class AddedVocabulary private constructor(
    private val vocabulary: Vocabulary,
    private val normalizer: Normalizer?,
    private val skipSpecial: Boolean,
    private val ids: Map<String, Int>,
    private val tokens: Map<Int, AddedToken>,
    private val special: Set<String>,
    private val normalForms: Map<Int, String>,
) {
    private val plain = matcher { !it.normalized }
    private val normalized = matcher { it.normalized }

    /** Ids of the tokens by their contents. */
    val idsByContent: Map<String, Int> get() = ids

    val tokensById: Map<Int, AddedToken> get() = tokens

    fun id(content: String): Int? = ids[content]

    /** What a token is in a list to decode: its normal form, if it has another one. */
    fun decoded(id: Int): String? = normalForms[id] ?: tokens[id]?.content

    fun isSpecial(token: String): Boolean = token in special

    /** With more tokens. A token that the model knows keeps the model's id. */
    fun plus(added: List<AddedToken>): AddedVocabulary {
        val newIds = LinkedHashMap(ids)
        val newTokens = LinkedHashMap(tokens)
        val newSpecial = LinkedHashSet(special)
        val newForms = HashMap(normalForms)
        var next = maxOf(vocabulary.size, tokens.keys.maxOrNull()?.let { if (it >= vocabulary.size) it + 1 else 0 } ?: 0)
        for (token in added) {
            if (token.content.isEmpty()) continue
            val id = newIds[token.content] ?: vocabulary.id(token.content) ?: next++
            if (token.normalized && normalizer != null) {
                val form = normalizer.normalize(Piece(token.content)).text
                if (form != token.content) newForms[id] = form
            }
            newIds[token.content] = id
            newTokens[id] = token
            if (token.special) newSpecial += token.content
        }
        return AddedVocabulary(vocabulary, normalizer, skipSpecial, newIds, newTokens, newSpecial, newForms)
    }

    /** The same, but special tokens in a text are text. */
    fun skippingSpecial(): AddedVocabulary = AddedVocabulary(vocabulary, normalizer, true, ids, tokens, special, normalForms)

    /** Normalizes a text and cuts the added tokens out of it. */
    fun extract(text: String): List<Segment> {
        val segments = mutableListOf<Segment>()
        for (segment in cut(Piece(text), plain)) {
            if (segment.id >= 0) segments += segment else segments += cut(normalizer?.normalize(segment.piece) ?: segment.piece, normalized)
        }
        return segments
    }

    private fun matcher(wanted: (AddedToken) -> Boolean): TokenMatcher? {
        val contents = tokens.filterValues(wanted).mapValues { (id, token) -> if (token.normalized) normalForms[id] ?: token.content else token.content }
        return if (contents.isEmpty()) null else TokenMatcher(contents)
    }

    private fun cut(piece: Piece, matcher: TokenMatcher?): List<Segment> {
        val text = piece.text
        if (text.isEmpty()) return emptyList()
        if (matcher == null) return listOf(Segment(piece.slice(0, text.length)))
        val segments = mutableListOf<Segment>()
        var done = 0
        matcher.forEachMatch(text) { begin, end, id ->
            val token = tokens.getValue(id)
            if (isFound(token, text, begin, end)) {
                val from = if (token.stripLeft) maxOf(beginOfSpace(text, begin), done) else begin
                val to = if (token.stripRight) endOfSpace(text, end) else end
                if (from > to) throw TokenizerFailure("added tokens take the same white space")
                if (done < from) segments += Segment(piece.slice(done, from))
                segments += Segment(piece.slice(from, to), id)
                done = to
            }
        }
        if (done != text.length) segments += Segment(piece.slice(done, text.length))
        return segments
    }

    private fun isFound(token: AddedToken, text: String, begin: Int, end: Int): Boolean {
        if (skipSpecial && token.content in special) return false
        if (!token.singleWord) return true
        val goesOnBefore = begin > 0 && text.codePointBefore(begin) in WORD
        val goesOnAfter = end < text.length && text.codePointAt(end) in WORD
        return !goesOnBefore && !goesOnAfter
    }

    private fun beginOfSpace(text: String, end: Int): Int {
        var begin = end
        while (begin > 0 && Unicode.isWhiteSpace(text[begin - 1])) begin--
        return begin
    }

    private fun endOfSpace(text: String, begin: Int): Int {
        var end = begin
        while (end < text.length && Unicode.isWhiteSpace(text[end])) end++
        return end
    }

    companion object {
        private val WORD by lazy { Unicode.quirk("rust_word") }

        fun empty(vocabulary: Vocabulary, normalizer: Normalizer?): AddedVocabulary =
            AddedVocabulary(vocabulary, normalizer, false, emptyMap(), emptyMap(), emptySet(), emptyMap())
    }
}

/** Finds texts in a text: the leftmost first, and of those that begin there the longest. */
internal class TokenMatcher(contents: Map<Int, String>) {
    private val ids = contents.keys.toIntArray()
    private val vocabulary: Vocabulary
    private val prefixes = PrefixFilter(ids.size)

    init {
        val builder = Vocabulary.Builder()
        ids.forEachIndexed { index, id ->
            val content = contents.getValue(id)
            if (content.isEmpty()) throw MalformedTokenizer("an added token is empty in its normal form")
            if (content.length > MOST_LENGTH) throw MalformedTokenizer("an added token is longer than $MOST_LENGTH characters")
            builder.add(content, index)
            prefixes.add(content)
        }
        vocabulary = builder.build()
    }

    inline fun forEachMatch(text: String, action: (begin: Int, end: Int, id: Int) -> Unit) {
        var at = 0
        while (at < text.length) {
            val match = longestAt(text, at)
            if (match < 0) {
                at++
            } else {
                val end = at + vocabulary.token(match)!!.length
                action(at, end, ids[match])
                at = end
            }
        }
    }

    private fun longestAt(text: String, begin: Int): Int {
        var longest = -1
        var hash = Hash.START
        for (at in begin until text.length) {
            hash = Hash.next(hash, text[at])
            if (!prefixes.mayBegin(hash)) break
            val found = vocabulary.find(text, begin, at + 1, hash)
            if (found >= 0) longest = found
        }
        return longest
    }

    private companion object {
        const val MOST_LENGTH = 4_096
    }
}
