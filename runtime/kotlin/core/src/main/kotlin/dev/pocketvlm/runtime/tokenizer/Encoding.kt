package dev.pocketvlm.runtime.tokenizer

/** Tokens of a text, and where they come from. */
internal class Encoding {
    private var ids = IntArray(64)
    private var begins = IntArray(64)
    private var ends = IntArray(64)
    private var added = BooleanArray(64)
    private val values = ArrayList<String>()
    var size: Int = 0
        private set

    fun id(index: Int): Int = ids[index]

    /** Where the token begins in the original text. */
    fun begin(index: Int): Int = begins[index]

    fun end(index: Int): Int = ends[index]

    /** Whether the post-processor put the token there. */
    fun isAdded(index: Int): Boolean = added[index]

    /** The token as a text; of an added token all that it covers. */
    fun value(index: Int): String = values[index]

    fun ids(): IntArray = ids.copyOf(size)

    fun move(index: Int, begin: Int, end: Int) {
        begins[index] = begin
        ends[index] = end
    }

    fun add(id: Int, begin: Int, end: Int, value: String, isAdded: Boolean = false) {
        if (size == ids.size) {
            ids = ids.copyOf(size * 2)
            begins = begins.copyOf(size * 2)
            ends = ends.copyOf(size * 2)
            added = added.copyOf(size * 2)
        }
        ids[size] = id
        begins[size] = begin
        ends[size] = end
        added[size++] = isAdded
        values += value
    }

    fun addAll(other: Encoding, keepAdded: Boolean = true) {
        for (index in 0 until other.size) {
            add(other.id(index), other.begin(index), other.end(index), other.value(index), keepAdded && other.isAdded(index))
        }
    }
}
