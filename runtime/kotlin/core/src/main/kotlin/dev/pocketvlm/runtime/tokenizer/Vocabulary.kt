package dev.pocketvlm.runtime.tokenizer

/**
 * Tokens by their ids and ids by their tokens. Parts of a text are looked up without being cut out: their hash is built up
 * character by character, see [Hash].
 */
internal class Vocabulary private constructor(
    private val tokens: Array<String?>,
    private val table: IntArray,
    val size: Int,
    val longest: Int,
) {
    private val shift = Hash.shift(table.size)

    /** Largest id, -1 if there is no token. */
    val largestId: Int get() = tokens.size - 1

    fun token(id: Int): String? = if (id in tokens.indices) tokens[id] else null

    fun id(token: String): Int? = find(token, 0, token.length, Hash.of(token)).takeIf { it >= 0 }

    /** Id of a part of a text, -1 if it is no token. */
    fun find(text: String, from: Int, to: Int, hash: Int = Hash.of(text, from, to)): Int {
        var slot = Hash.slot(hash, shift)
        while (true) {
            val entry = table[slot]
            if (entry == 0) return -1
            val token = tokens[entry - 1]!!
            if (token.length == to - from && text.startsWith(token, from)) return entry - 1
            slot = slot + 1 and table.size - 1
        }
    }

    /** Id of the token that a token and a part of another make, -1 if there is none. */
    fun findJoined(left: String, right: String, from: Int, to: Int = right.length, leftHash: Int = Hash.of(left)): Int {
        val length = left.length + to - from
        var slot = Hash.slot(Hash.of(right, from, to, leftHash), shift)
        while (true) {
            val entry = table[slot]
            if (entry == 0) return -1
            val token = tokens[entry - 1]!!
            if (token.length == length && token.startsWith(left) && token.regionMatches(left.length, right, from, to - from)) {
                return entry - 1
            }
            slot = slot + 1 and table.size - 1
        }
    }

    /** @param lastWins whether a token may come twice: it then has its last id. */
    class Builder(private val lastWins: Boolean = false) {
        private var tokens = arrayOfNulls<String>(1 shl 10)
        private var table = IntArray(1 shl 11)
        private var size = 0
        private var entries = 0
        private var largest = -1
        private var longest = 0

        fun add(token: String, id: Int) {
            if (id !in 0..MOST_ID) throw MalformedTokenizer("the id $id of the token '${token.take(MOST_SHOWN)}' is not in 0..$MOST_ID")
            if (!token.isWellFormed()) throw MalformedTokenizer("the token with id $id is not valid Unicode")
            if (id >= tokens.size) tokens = tokens.copyOf(maxOf(id + 1, minOf(tokens.size * 2, MOST_ID + 1)))
            if (tokens[id] != null) {
                throw MalformedTokenizer("two tokens have the id $id: '${tokens[id]!!.take(MOST_SHOWN)}', '${token.take(MOST_SHOWN)}'")
            }
            if ((entries + 1) * 2 > table.size) grow()
            tokens[id] = token
            size++
            largest = maxOf(largest, id)
            longest = maxOf(longest, token.length)
            insert(id)
        }

        fun build(): Vocabulary = Vocabulary(tokens.copyOf(largest + 1), table, size, longest)

        private fun grow() {
            val old = table
            table = IntArray(old.size * 2)
            entries = 0
            for (entry in old) if (entry != 0) insert(entry - 1)
        }

        private fun insert(id: Int) {
            val token = tokens[id]!!
            var slot = Hash.slot(Hash.of(token), Hash.shift(table.size))
            var probes = 0
            while (table[slot] != 0) {
                if (tokens[table[slot] - 1] == token) {
                    if (!lastWins) throw MalformedTokenizer("the token '${token.take(MOST_SHOWN)}' is there twice")
                    table[slot] = id + 1
                    return
                }
                if (++probes > Hash.MOST_PROBES) throw MalformedTokenizer("the vocabulary is made to be slow")
                slot = slot + 1 and table.size - 1
            }
            table[slot] = id + 1
            entries++
        }
    }

    companion object {
        private const val MOST_ID = (1 shl 23) - 1
        private const val MOST_SHOWN = 40
    }
}

/** Hash of a text that can be continued by the text that follows it. */
internal object Hash {
    const val START: Int = 0x2F0B4C47

    /** A table that is half full has no longer rows of taken places by chance. */
    const val MOST_PROBES: Int = 2_000
    private const val FACTOR = -0x61c88647
    private const val LONG_FACTOR = -0x61c8864680b583ebL

    fun next(hash: Int, char: Char): Int = (hash xor char.code) * FACTOR

    fun of(text: String): Int = of(text, 0, text.length)

    fun of(text: String, from: Int, to: Int, start: Int = START): Int {
        var hash = start
        for (index in from until to) hash = next(hash, text[index])
        return hash
    }

    /** For a table of 2^n places, 32 - n: the upper bits of a product depend on all the lower ones. */
    fun shift(tableSize: Int): Int = Integer.numberOfLeadingZeros(tableSize) + 1

    fun slot(hash: Int, shift: Int): Int = ((hash xor (hash ushr 15)) * FACTOR) ushr shift

    fun slot(key: Long, shift: Int): Int = ((key xor (key ushr 32)) * LONG_FACTOR ushr 32).toInt() ushr shift
}

/** Whether a text may begin one of many texts; may err on the side of yes. */
internal class PrefixFilter(texts: Int) {
    private val bits = LongArray(maxOf(FEWEST_WORDS, Integer.highestOneBit(texts)))
    private val shift = Hash.shift(bits.size * Long.SIZE_BITS)

    fun add(text: String) {
        var hash = Hash.START
        for (char in text) {
            hash = Hash.next(hash, char)
            val bit = Hash.slot(hash, shift)
            bits[bit shr 6] = bits[bit shr 6] or (1L shl bit)
        }
    }

    fun mayBegin(hash: Int): Boolean {
        val bit = Hash.slot(hash, shift)
        return bits[bit shr 6] ushr bit and 1L != 0L
    }

    private companion object {
        const val FEWEST_WORDS = 64
    }
}
