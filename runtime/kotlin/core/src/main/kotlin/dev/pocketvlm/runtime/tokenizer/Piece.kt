package dev.pocketvlm.runtime.tokenizer

/**
 * A part of the text on its way through normalizers and pre-tokenizers, which knows for every character where in the
 * original text it comes from.
 *
 * Where nothing was changed, character i comes from character `start` + i, and there are no arrays.
 *
 * @property start where the piece began in the original text when it was cut out.
 */
internal class Piece private constructor(
    val text: String,
    val start: Int,
    private val shift: Int,
    private val begins: IntArray?,
    private val ends: IntArray?,
) {
    constructor(text: String, start: Int = 0) : this(text, start, start, null, null)

    /** Where the character at `index` begins in the original text. */
    fun beginOf(index: Int): Int = begins?.get(index) ?: (shift + index)

    /** Where the character whose last half is at `index` ends in the original text. */
    fun endOf(index: Int): Int = ends?.get(index) ?: (shift + index + 1)

    fun slice(from: Int, to: Int): Piece = when {
        from == 0 && to == text.length -> Piece(text, if (to == 0) start else beginOf(0), shift, begins, ends)
        begins == null -> Piece(text.substring(from, to), shift + from)
        else -> Piece(text.substring(from, to), begins[from], 0, begins.copyOfRange(from, to), ends!!.copyOfRange(from, to))
    }

    /** The same with a text in which every character stands at the same place. */
    fun withText(other: String): Piece = Piece(other, start, shift, begins, ends)

    fun edit(): Editor = Editor()

    /** Builds what becomes of this piece; every new character says which old one it comes from. */
    inner class Editor {
        private val builder = StringBuilder(text.length + 16)
        private var newBegins = IntArray(text.length + 16)
        private var newEnds = IntArray(text.length + 16)

        /** Appends `characters`, all of which come from the old character at `index`. */
        fun append(characters: String, index: Int) = append(characters, beginOf(index), endOf(lastHalf(index)))

        fun append(codePoint: Int, index: Int) {
            val begin = beginOf(index)
            val end = endOf(lastHalf(index))
            builder.appendCodePoint(codePoint)
            fill(begin, end)
        }

        /** Appends an old character as it is. */
        fun keep(index: Int) = append(text.codePointAt(index), index)

        fun append(characters: String, begin: Int, end: Int) {
            builder.append(characters)
            fill(begin, end)
        }

        fun finish(): Piece {
            val result = builder.toString()
            return if (result == text) this@Piece else Piece(result, start, 0, newBegins.copyOf(result.length), newEnds.copyOf(result.length))
        }

        private fun fill(begin: Int, end: Int) {
            if (builder.length > newBegins.size) {
                newBegins = newBegins.copyOf(builder.length * 2)
                newEnds = newEnds.copyOf(builder.length * 2)
            }
            newBegins.fill(begin, filled, builder.length)
            newEnds.fill(end, filled, builder.length)
            filled = builder.length
        }

        private var filled = 0

        private fun lastHalf(index: Int): Int = index + Character.charCount(text.codePointAt(index)) - 1
    }
}

/**
 * Keeps the library's account of where characters come from: every new character says how many old ones it stands for.
 */
internal class Transformation(private val piece: Piece) {
    private val editor = piece.edit()
    private var next = 0
    private var last = -1

    /**
     * Appends a character.
     *
     * @param change 1 if it comes in addition to the old ones, 0 if it stands for the next old one, -n if it stands for the
     *   next old one and n others after it.
     */
    fun put(codePoint: Int, change: Int) {
        if (change <= 0) skip()
        if (last < 0) editor.append(String(Character.toChars(codePoint)), piece.start, piece.start) else editor.append(codePoint, last)
        repeat(-change) { skip() }
    }

    /** The old character that comes next stands for nothing. */
    fun skip() {
        if (next >= piece.text.length) return
        last = next
        next += Character.charCount(piece.text.codePointAt(next))
    }

    fun finish(): Piece = editor.finish()
}

/** What becomes of the separators when a text is split. */
internal enum class SplitBehavior { REMOVED, ISOLATED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS }

/** Consecutive ranges of a text, each of which is a match or lies between matches. */
internal class Ranges {
    private var ends = IntArray(32)
    private var matches = BooleanArray(32)
    var size: Int = 0
        private set

    fun begin(index: Int): Int = if (index == 0) 0 else ends[index - 1]

    fun end(index: Int): Int = ends[index]

    fun isMatch(index: Int): Boolean = matches[index]

    fun add(end: Int, isMatch: Boolean) {
        if (size == ends.size) {
            ends = ends.copyOf(size * 2)
            matches = matches.copyOf(size * 2)
        }
        ends[size] = end
        matches[size++] = isMatch
    }

    fun invert() {
        for (index in 0 until size) matches[index] = !matches[index]
    }

    companion object {
        /** @param found beginnings and ends of matches in turn. */
        fun ofMatches(found: IntArray, length: Int): Ranges {
            val ranges = Ranges()
            var end = 0
            for (index in found.indices step 2) {
                if (found[index] > end) ranges.add(found[index], false)
                end = found[index + 1]
                ranges.add(end, true)
            }
            if (end < length) ranges.add(length, false)
            return ranges
        }

        /** Every character for which `matches` holds is a match of its own. */
        inline fun ofCharacters(text: String, matches: (Int) -> Boolean): Ranges {
            val ranges = Ranges()
            var end = 0
            text.forEachCodePoint { index, codePoint ->
                if (matches(codePoint)) {
                    if (index > end) ranges.add(index, false)
                    end = index + Character.charCount(codePoint)
                    ranges.add(end, true)
                }
            }
            if (end < text.length) ranges.add(text.length, false)
            return ranges
        }
    }
}

/** The pieces that are not empty, in order. */
internal fun Piece.split(ranges: Ranges, behavior: SplitBehavior): List<Piece> {
    val pieces = ArrayList<Piece>(ranges.size)
    var begin = 0
    for (index in 0 until ranges.size) {
        val joined = index + 1 < ranges.size && ranges.joinsNext(index, behavior)
        if (joined) continue
        val end = ranges.end(index)
        val removed = behavior == SplitBehavior.REMOVED && ranges.isMatch(index)
        if (!removed && end > begin) pieces += slice(begin, end)
        begin = end
    }
    return pieces
}

/** Whether a range and the one after it become one piece. */
private fun Ranges.joinsNext(index: Int, behavior: SplitBehavior): Boolean = when (behavior) {
    SplitBehavior.REMOVED, SplitBehavior.ISOLATED -> false
    SplitBehavior.CONTIGUOUS -> isMatch(index) == isMatch(index + 1)
    SplitBehavior.MERGED_WITH_PREVIOUS -> !isMatch(index) && isMatch(index + 1)
    SplitBehavior.MERGED_WITH_NEXT -> isMatch(index) && !isMatch(index + 1)
}
