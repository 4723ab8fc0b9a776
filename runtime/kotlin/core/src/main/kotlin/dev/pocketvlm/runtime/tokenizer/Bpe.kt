package dev.pocketvlm.runtime.tokenizer

/**
 * Byte pair encoding: the pair of neighbours that comes first in the list of merges becomes one token, again and again.
 *
 * @property prefix what a token begins with that does not begin a word.
 * @property suffix what a token ends with that ends a word.
 */
internal class Bpe(
    override val vocabulary: Vocabulary,
    private val merges: MergeTable,
    override val unknownToken: String?,
    private val fuseUnknown: Boolean,
    byteFallback: Boolean,
    private val ignoreMerges: Boolean,
    private val prefix: String,
    private val suffix: String,
) : Model {
    private val bytes = if (byteFallback) ByteTokens(vocabulary) else null
    private val unknownId = unknownToken?.let(vocabulary::id)
    private val cache = WordCache(::merged)

    override fun encode(word: String): Tokens {
        if (word.isEmpty()) return Tokens.NONE
        if (ignoreMerges) {
            val whole = vocabulary.id(word)
            if (whole != null) return Tokens.one(whole, word.length)
        }
        return cache.get(word)
    }

    private fun merged(word: String): Tokens = Merging(merges, characters(word)).run()

    /** The characters of a word as tokens, before any merge. */
    private fun characters(word: String): Tokens.Builder {
        val symbols = Tokens.Builder(word.length)
        var unknownBegin = -1
        var unknownEnd = -1

        fun addUnknown() {
            if (unknownBegin >= 0) symbols.add(unknownId!!, unknownBegin, unknownEnd)
            unknownBegin = -1
        }

        word.forEachCodePoint { index, codePoint ->
            val end = index + Character.charCount(codePoint)
            val plain = (index == 0 || prefix.isEmpty()) && (end < word.length || suffix.isEmpty())
            val decorated = if (plain) null else decorate(word, index, end)
            val id = if (decorated == null) vocabulary.find(word, index, end) else vocabulary.id(decorated) ?: -1
            val fallback = if (id < 0) bytes?.of(decorated ?: word.substring(index, end)) else null
            if (id >= 0) {
                addUnknown()
                symbols.add(id, index, end)
            } else if (fallback != null) {
                // An unknown character that waits is added after these bytes: so does the library.
                fallback.forEach { symbols.add(it, index, end) }
            } else if (unknownToken != null) {
                if (!fuseUnknown) addUnknown()
                if (unknownId == null) throw TokenizerFailure("the unknown token '$unknownToken' is not in the vocabulary")
                if (unknownBegin < 0) unknownBegin = index
                unknownEnd = end
            }
        }
        addUnknown()
        return symbols
    }

    private fun decorate(word: String, begin: Int, end: Int): String =
        (if (begin > 0) prefix else "") + word.substring(begin, end) + (if (end == word.length) suffix else "")
}

/** Which pairs of tokens are merged, in which order, and into what. */
internal class MergeTable private constructor(private val keys: LongArray, private val ranks: IntArray, private val results: IntArray) {
    private val shift = Hash.shift(keys.size)

    /** Where the pair stands in the table, or -1. */
    fun find(left: Int, right: Int): Int {
        val key = key(left, right)
        var slot = Hash.slot(key, shift)
        while (true) {
            if (keys[slot] == key) return slot
            if (keys[slot] == FREE) return -1
            slot = slot + 1 and keys.size - 1
        }
    }

    fun rank(slot: Int): Int = ranks[slot]

    fun result(slot: Int): Int = results[slot]

    class Builder {
        private var keys = LongArray(1 shl 11) { FREE }
        private var ranks = IntArray(1 shl 11)
        private var results = IntArray(1 shl 11)
        private var size = 0

        /** A pair that comes again takes the later rank. */
        fun add(left: Int, right: Int, rank: Int, result: Int) {
            if ((size + 1) * 2 > keys.size) grow()
            insert(key(left, right), rank, result)
        }

        fun build(): MergeTable = MergeTable(keys, ranks, results)

        private fun insert(key: Long, rank: Int, result: Int) {
            var slot = Hash.slot(key, Hash.shift(keys.size))
            var probes = 0
            while (keys[slot] != FREE && keys[slot] != key) {
                if (++probes > Hash.MOST_PROBES) throw MalformedTokenizer("the merges are made to be slow")
                slot = slot + 1 and keys.size - 1
            }
            if (keys[slot] == FREE) size++
            keys[slot] = key
            ranks[slot] = rank
            results[slot] = result
        }

        private fun grow() {
            val oldKeys = keys
            val oldRanks = ranks
            val oldResults = results
            keys = LongArray(oldKeys.size * 2) { FREE }
            ranks = IntArray(keys.size)
            results = IntArray(keys.size)
            size = 0
            for (slot in oldKeys.indices) if (oldKeys[slot] != FREE) insert(oldKeys[slot], oldRanks[slot], oldResults[slot])
        }
    }

    private companion object {
        const val FREE = -1L

        fun key(left: Int, right: Int): Long = left.toLong() shl 32 or right.toLong()
    }
}

/** The merges of one word. Possible ones wait in a heap, first by rank, then by place; n characters take n log n steps. */
private class Merging(private val merges: MergeTable, private val symbols: Tokens.Builder) {
    private val next = IntArray(symbols.size) { if (it + 1 < symbols.size) it + 1 else -1 }
    private val previous = IntArray(symbols.size) { it - 1 }
    private val gone = BooleanArray(symbols.size)
    private val heap = MergeHeap(symbols.size)

    fun run(): Tokens {
        for (index in 0 until symbols.size - 1) propose(index)
        while (heap.isNotEmpty) {
            val at = heap.place
            val result = heap.result
            heap.removeFirst()
            if (!gone[at] && next[at] >= 0) merge(at, result)
        }
        val tokens = Tokens.Builder(symbols.size)
        var at = if (symbols.size == 0) -1 else 0
        while (at >= 0) {
            tokens.add(symbols.ids[at], symbols.begins[at], symbols.ends[at])
            at = next[at]
        }
        return tokens.build()
    }

    /** Merges a token with the next one, unless one of them has changed since into what gives another result. */
    private fun merge(at: Int, result: Int) {
        val right = next[at]
        val slot = merges.find(symbols.ids[at], symbols.ids[right])
        if (slot < 0 || merges.result(slot) != result) return
        symbols.ids[at] = result
        symbols.ends[at] = symbols.ends[right]
        gone[right] = true
        next[at] = next[right]
        if (next[at] >= 0) previous[next[at]] = at
        if (previous[at] >= 0) propose(previous[at])
        propose(at)
    }

    private fun propose(at: Int) {
        if (next[at] < 0) return
        val slot = merges.find(symbols.ids[at], symbols.ids[next[at]])
        if (slot >= 0) heap.add(merges.rank(slot), at, merges.result(slot))
    }
}

/** A binary heap of merges. */
private class MergeHeap(capacity: Int) {
    private var keys = LongArray(maxOf(4, capacity))
    private var results = IntArray(maxOf(4, capacity))
    private var size = 0

    val isNotEmpty: Boolean get() = size > 0

    /** Place of the first merge. */
    val place: Int get() = keys[0].toInt()

    /** What the first merge gives. */
    val result: Int get() = results[0]

    fun add(rank: Int, place: Int, result: Int) {
        if (size == keys.size) {
            keys = keys.copyOf(size * 2)
            results = results.copyOf(size * 2)
        }
        val key = rank.toLong() shl 32 or place.toLong()
        var at = size++
        while (at > 0) {
            val parent = (at - 1) / 2
            if (keys[parent] <= key) break
            keys[at] = keys[parent]
            results[at] = results[parent]
            at = parent
        }
        keys[at] = key
        results[at] = result
    }

    fun removeFirst() {
        val key = keys[--size]
        val result = results[size]
        var at = 0
        while (true) {
            var child = 2 * at + 1
            if (child >= size) break
            if (child + 1 < size && keys[child + 1] < keys[child]) child++
            if (keys[child] >= key) break
            keys[at] = keys[child]
            results[at] = results[child]
            at = child
        }
        keys[at] = key
        results[at] = result
    }
}
