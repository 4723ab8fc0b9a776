package dev.pocketvlm.runtime.tokenizer

import java.util.concurrent.ConcurrentHashMap

/** Encodes one word. May be called by several threads. */
internal interface Model {
    val vocabulary: Vocabulary

    /** Name of the token for what the vocabulary lacks, if there is one. */
    val unknownToken: String?

    fun encode(word: String): Tokens
}

/**
 * The tokens of a word.
 *
 * @property begins where each begins in the word; a token for a byte spans its whole character.
 */
internal class Tokens(val ids: IntArray, val begins: IntArray, val ends: IntArray) {
    companion object {
        val NONE: Tokens = Tokens(IntArray(0), IntArray(0), IntArray(0))

        fun one(id: Int, length: Int): Tokens = Tokens(intArrayOf(id), intArrayOf(0), intArrayOf(length))
    }

    class Builder(capacity: Int) {
        var ids = IntArray(capacity)
        var begins = IntArray(capacity)
        var ends = IntArray(capacity)
        var size = 0

        fun add(id: Int, begin: Int, end: Int) {
            if (size == ids.size) {
                val capacity = maxOf(8, size * 2)
                ids = ids.copyOf(capacity)
                begins = begins.copyOf(capacity)
                ends = ends.copyOf(capacity)
            }
            ids[size] = id
            begins[size] = begin
            ends[size++] = end
        }

        fun build(): Tokens = Tokens(ids.copyOf(size), begins.copyOf(size), ends.copyOf(size))
    }
}

/** Remembers the tokens of words, up to a number of them. */
internal class WordCache(private val encode: (String) -> Tokens) {
    private val words = ConcurrentHashMap<String, Tokens>()

    fun get(word: String): Tokens {
        if (word.length > LONGEST) return encode(word)
        return words[word] ?: encode(word).also { if (words.size < MOST_WORDS) words[word] = it }
    }

    private companion object {
        const val MOST_WORDS = 10_000
        const val LONGEST = 64
    }
}

/** The tokens "<0x00>" to "<0xFF>", or those of them that there are. */
internal class ByteTokens(vocabulary: Vocabulary) {
    private val ids = IntArray(256) { byte ->
        vocabulary.id("<0x" + byte.toString(16).uppercase().padStart(2, '0') + ">") ?: -1
    }

    /** Ids of the bytes of a text, or null if one of them has no token. */
    fun of(text: String): IntArray? {
        val bytes = text.encodeToByteArray()
        val result = IntArray(bytes.size) { ids[bytes[it].toInt() and 0xFF] }
        return result.takeIf { -1 !in it }
    }
}
