package dev.pocketvlm.runtime.tokenizer

/** A word is one token. */
internal class WordLevel(override val vocabulary: Vocabulary, override val unknownToken: String) : Model {
    override fun encode(word: String): Tokens = Tokens.one(vocabulary.id(word) ?: vocabulary.unknownId(unknownToken), word.length)
}

/** From left to right the longest token that fits; if none does, the word is unknown. */
internal class WordPiece(
    override val vocabulary: Vocabulary,
    override val unknownToken: String,
    private val prefix: String,
    private val mostCharacters: Int,
) : Model {
    private val prefixHash = Hash.of(prefix)

    override fun encode(word: String): Tokens {
        if (word.codePointCount(0, word.length) > mostCharacters) return unknown(word)
        val tokens = Tokens.Builder(word.length)
        var begin = 0
        while (begin < word.length) {
            var end = minOf(word.length, begin + vocabulary.longest)
            var id = -1
            while (end > begin) {
                id = find(word, begin, end)
                if (id >= 0) break
                end--
            }
            if (id < 0) return unknown(word)
            tokens.add(id, begin, end)
            begin = end
        }
        return tokens.build()
    }

    private fun unknown(word: String): Tokens = Tokens.one(vocabulary.unknownId(unknownToken), word.length)

    private fun find(word: String, begin: Int, end: Int): Int =
        if (begin == 0) vocabulary.find(word, 0, end) else vocabulary.findJoined(prefix, word, begin, end, prefixHash)
}

private fun Vocabulary.unknownId(token: String): Int =
    id(token) ?: throw TokenizerFailure("the unknown token '$token' is not in the vocabulary")
