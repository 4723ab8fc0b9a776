package dev.pocketvlm.runtime.tokenizer.regex

import dev.pocketvlm.runtime.tokenizer.CodePointSet

/** Which characters are the same without regard to case, by Unicode's simple case folding. */
internal object CaseFolding {
    /** Letters that fold to several characters, and sequences that such letters fold to: one matches the other. */
    private val LONG_FOLDS = listOf("ss", "st", "ff", "fi", "fl", "\u02BCn", "j\u030C", "h\u0331", "t\u0308", "w\u030A", "y\u030A", "i\u0307")
    private const val DOTTED_CAPITAL = 0x130
    private const val DOTLESS_SMALL = 0x131

    private val others: Map<Int, List<Int>> by lazy {
        (0..0x1FFFF).filter { Character.getType(it) != Character.UNASSIGNED.toInt() }
            .groupBy(::fold).values.filter { it.size > 1 }
            .flatMap { same -> same.map { it to same } }.toMap()
    }

    fun isLongFold(text: String): Boolean = LONG_FOLDS.any { it in text }

    /** Whether a character has a folding of several characters, or may have one. */
    fun foldsToSeveral(codePoint: Int): Boolean = codePoint in longLetters

    fun fold(codePoint: Int): Int = when (codePoint) {
        // Only Turkish takes these two for kinds of i.
        DOTTED_CAPITAL, DOTLESS_SMALL -> codePoint
        else -> Character.toLowerCase(Character.toUpperCase(codePoint))
    }

    fun close(codePoint: Int): CodePointSet = CodePointSet.ofAll(others[codePoint] ?: listOf(codePoint))

    fun close(set: CodePointSet): CodePointSet {
        val added = others.filterKeys { it in set }.values.flatten().distinct().filter { it !in set }
        return if (added.isEmpty()) set else set or CodePointSet.ofAll(added)
    }

    private val longLetters = listOf(
        0xDF..0xDF, 0x130..0x130, 0x149..0x149, 0x1F0..0x1F0, 0x390..0x390, 0x3B0..0x3B0, 0x587..0x587, 0x1E96..0x1E9A,
        0x1E9E..0x1E9E, 0x1F50..0x1F57, 0x1F80..0x1FFC, 0xFB00..0xFB17,
    ).fold(CodePointSet.EMPTY) { set, range -> set or CodePointSet.of(range) }
}
