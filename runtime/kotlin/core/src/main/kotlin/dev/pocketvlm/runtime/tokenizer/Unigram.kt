package dev.pocketvlm.runtime.tokenizer

/** The likeliest way to write a word as tokens that have a logarithm of a probability each. */
internal class Unigram(
    override val vocabulary: Vocabulary,
    private val scores: DoubleArray,
    val unknownId: Int?,
    byteFallback: Boolean,
) : Model {
    private val bytes = if (byteFallback) ByteTokens(vocabulary) else null
    private val unknownScore = (scores.minOrNull() ?: Double.POSITIVE_INFINITY) - UNKNOWN_PENALTY
    private val cache = WordCache(::likeliest)
    private val prefixes = PrefixFilter(scores.size).also { filter ->
        for (id in scores.indices) filter.add(vocabulary.token(id)!!)
    }

    override val unknownToken: String? get() = unknownId?.let(vocabulary::token)

    override fun encode(word: String): Tokens = if (word.isEmpty()) Tokens.NONE else cache.get(word)

    private fun likeliest(word: String): Tokens {
        val best = BestPaths(word.length)
        word.forEachCodePoint { begin, codePoint ->
            val charEnd = begin + Character.charCount(codePoint)
            if (!addTokens(word, begin, charEnd, best)) {
                val id = unknownId ?: throw TokenizerFailure("a character is unknown, and there is no token for it")
                best.offer(begin, charEnd, id, unknownScore)
            }
        }
        return tokens(word, best)
    }

    /** Offers the tokens that begin at a place. Returns whether one of them is the single character. */
    private fun addTokens(word: String, begin: Int, charEnd: Int, best: BestPaths): Boolean {
        var single = false
        var hash = Hash.START
        for (end in begin + 1..word.length) {
            hash = Hash.next(hash, word[end - 1])
            if (!prefixes.mayBegin(hash)) break
            val id = vocabulary.find(word, begin, end, hash)
            if (id < 0) continue
            best.offer(begin, end, id, scores[id])
            if (end == charEnd) single = true
        }
        return single
    }

    /** Walks back along the best path; unknown characters in a row are one token, or their bytes. */
    private fun tokens(word: String, best: BestPaths): Tokens {
        val begins = mutableListOf<Int>()
        var end = word.length
        while (end > 0) {
            var begin = best.begin(end)
            if (best.id(end) == unknownId) while (begin > 0 && best.id(begin) == unknownId) begin = best.begin(begin)
            begins += begin
            end = begin
        }
        val tokens = Tokens.Builder(begins.size)
        for (index in begins.indices.reversed()) {
            val begin = begins[index]
            val tokenEnd = if (index == 0) word.length else begins[index - 1]
            add(word, begin, tokenEnd, tokens)
        }
        return tokens.build()
    }

    private fun add(word: String, begin: Int, end: Int, tokens: Tokens.Builder) {
        val id = vocabulary.find(word, begin, end)
        val fallback = if (id < 0) bytes?.of(word.substring(begin, end)) else null
        when {
            id >= 0 -> tokens.add(id, begin, end)
            fallback != null -> fallback.forEach { tokens.add(it, begin, end) }
            else -> tokens.add(unknownId!!, begin, end)
        }
    }

    /** The best path that ends at each place of a word. */
    private class BestPaths(length: Int) {
        private val begins = IntArray(length + 1) { -1 }
        private val ids = IntArray(length + 1)
        private val scores = DoubleArray(length + 1)

        fun begin(end: Int): Int = begins[end]

        fun id(end: Int): Int = ids[end]

        fun offer(begin: Int, end: Int, id: Int, score: Double) {
            val total = score + scores[begin]
            if (begins[end] < 0 || total > scores[end]) {
                begins[end] = begin
                ids[end] = id
                scores[end] = total
            }
        }
    }

    private companion object {
        const val UNKNOWN_PENALTY = 10.0
    }
}
