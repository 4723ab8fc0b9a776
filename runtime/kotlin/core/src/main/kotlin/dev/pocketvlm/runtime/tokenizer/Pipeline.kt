package dev.pocketvlm.runtime.tokenizer

/** All parts of a tokenizer in their order. Immutable but for the model's memory of words. */
internal class Pipeline(
    private val normalizer: Normalizer?,
    private val preTokenizer: PreTokenizer?,
    val model: Model,
    private val postProcessor: PostProcessor?,
    val decoder: Decoder?,
    val added: AddedVocabulary,
) {
    fun withAdded(other: AddedVocabulary): Pipeline = Pipeline(normalizer, preTokenizer, model, postProcessor, decoder, other)

    fun id(token: String): Int? = added.id(token) ?: model.vocabulary.id(token)

    /** The token that is decoded for an id. */
    fun token(id: Int): String? = added.decoded(id) ?: model.vocabulary.token(id)

    /** Tokens of a text. `addTokens`: with those of the post-processor. */
    fun encode(text: String, addTokens: Boolean): Encoding {
        val encoding = Encoding()
        for (segment in added.extract(text)) {
            if (segment.id >= 0) {
                val piece = segment.piece
                encoding.add(segment.id, piece.beginOf(0), piece.endOf(piece.text.lastIndex), piece.text)
            } else {
                val words = preTokenizer?.split(segment.piece) ?: listOf(segment.piece)
                words.forEach { add(it, encoding) }
            }
        }
        val processed = postProcessor?.process(listOf(encoding), addTokens) ?: return encoding
        return processed.singleOrNull() ?: Encoding().also { all -> processed.forEach { all.addAll(it) } }
    }

    /** Text of tokens; special ones are left out. */
    fun decode(ids: List<Int>): String {
        val tokens = ids.mapNotNull { id -> token(id)?.takeUnless(added::isSpecial) }
        return decoder?.decode(tokens)?.joinToString("") ?: tokens.joinToString(" ")
    }

    private fun add(word: Piece, encoding: Encoding) {
        val tokens = model.encode(word.text)
        for (index in tokens.ids.indices) {
            val id = tokens.ids[index]
            encoding.add(id, word.beginOf(tokens.begins[index]), word.endOf(tokens.ends[index] - 1), model.vocabulary.token(id)!!)
        }
    }
}
