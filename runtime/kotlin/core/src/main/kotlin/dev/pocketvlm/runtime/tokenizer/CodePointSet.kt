package dev.pocketvlm.runtime.tokenizer

/** A set of code points, as sorted ranges. Looking one up in the basic plane is looking up a bit. */
internal class CodePointSet private constructor(private val bounds: IntArray) {
    private val basicPlane: LongArray by lazy(LazyThreadSafetyMode.PUBLICATION) { bits() }

    operator fun contains(codePoint: Int): Boolean =
        if (codePoint < BASIC_PLANE) {
            basicPlane[codePoint shr 6] ushr codePoint and 1L != 0L
        } else {
            inRange(codePoint)
        }

    val isEmpty: Boolean get() = bounds.isEmpty()

    /** The only member, or null if there are more or none. */
    val single: Int? get() = if (bounds.size == 2 && bounds[1] == bounds[0] + 1) bounds[0] else null

    infix fun or(other: CodePointSet): CodePointSet = combine(other) { a, b -> a || b }

    infix fun and(other: CodePointSet): CodePointSet = combine(other) { a, b -> a && b }

    operator fun minus(other: CodePointSet): CodePointSet = combine(other) { a, b -> a && !b }

    fun inverse(): CodePointSet = ALL - this

    fun forEach(action: (Int) -> Unit) {
        for (index in bounds.indices step 2) for (codePoint in bounds[index] until bounds[index + 1]) action(codePoint)
    }

    private fun inRange(codePoint: Int): Boolean {
        val found = bounds.binarySearch(codePoint)
        return if (found >= 0) found % 2 == 0 else (-found - 1) % 2 == 1
    }

    private fun bits(): LongArray {
        val bits = LongArray(BASIC_PLANE shr 6)
        for (index in bounds.indices step 2) {
            for (codePoint in bounds[index] until minOf(bounds[index + 1], BASIC_PLANE)) {
                bits[codePoint shr 6] = bits[codePoint shr 6] or (1L shl codePoint)
            }
        }
        return bits
    }

    /** Walks along the bounds of both sets; `keep` says what belongs to the result. */
    private inline fun combine(other: CodePointSet, keep: (Boolean, Boolean) -> Boolean): CodePointSet {
        val result = IntArray(bounds.size + other.bounds.size)
        var size = 0
        var left = 0
        var right = 0
        while (left < bounds.size || right < other.bounds.size) {
            val at = minOf(bounds.getOrElse(left) { Int.MAX_VALUE }, other.bounds.getOrElse(right) { Int.MAX_VALUE })
            if (left < bounds.size && bounds[left] == at) left++
            if (right < other.bounds.size && other.bounds[right] == at) right++
            val inside = keep(left % 2 == 1, right % 2 == 1)
            if (inside != (size % 2 == 1)) result[size++] = at
        }
        return CodePointSet(result.copyOf(size))
    }

    companion object {
        private const val BASIC_PLANE = 0x10000
        private const val END = Character.MAX_CODE_POINT + 1

        val EMPTY: CodePointSet = CodePointSet(IntArray(0))
        val ALL: CodePointSet = CodePointSet(intArrayOf(0, END))

        fun of(range: IntRange): CodePointSet = CodePointSet(intArrayOf(range.first, range.last + 1))

        fun of(codePoint: Int): CodePointSet = of(codePoint..codePoint)

        fun ofAll(codePoints: Iterable<Int>): CodePointSet = codePoints.fold(EMPTY) { set, codePoint -> set or of(codePoint) }

        /** From bounds in ascending order: where a range begins and where it ends, exclusive, in turn. */
        fun ofBounds(bounds: IntArray): CodePointSet = CodePointSet(bounds)
    }
}
