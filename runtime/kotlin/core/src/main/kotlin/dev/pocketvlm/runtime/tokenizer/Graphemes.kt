package dev.pocketvlm.runtime.tokenizer

/**
 * Where a user-perceived character ends, as far as [PrecompiledNormalizer] needs it: it looks only at those of fewer than
 * six bytes in UTF-8, so the rules for flags, families of emoji and Indic conjuncts, which are longer, are not here.
 */
internal object Graphemes {
    private val prepended = listOf(0x600..0x605, 0x6DD..0x6DD, 0x70F..0x70F, 0x890..0x891, 0x8E2..0x8E2, 0xD4E..0xD4E)
        .fold(CodePointSet.EMPTY) { set, range -> set or CodePointSet.of(range) }
    private val joiners = CodePointSet.of(0x200C..0x200D)
    private val tags = CodePointSet.of(0xE0020..0xE007F)

    /** Marks that stand for themselves: some of Myanmar and Tai Tham. */
    private val unattached = listOf(
        0x102B..0x102C, 0x1038..0x1038, 0x1062..0x1064, 0x1067..0x106D, 0x1083..0x1083, 0x1087..0x108C, 0x108F..0x108F,
        0x109A..0x109C, 0x1A61..0x1A61, 0x1A63..0x1A64, 0xAA7B..0xAA7B, 0xAA7D..0xAA7D,
    ).fold(CodePointSet.EMPTY) { set, range -> set or CodePointSet.of(range) }

    private val attached = (Unicode.category("M")!! - unattached) or joiners or tags or
        CodePointSet.ofAll(listOf(0xE33, 0xEB3, 0xFF9E, 0xFF9F)) or CodePointSet.of(0x1F3FB..0x1F3FF)
    private val controls = listOf("Cc", "Cf", "Zl", "Zp").fold(CodePointSet.EMPTY) { set, name -> set or Unicode.category(name)!! } -
        prepended - joiners - tags

    private val leading = CodePointSet.of(0x1100..0x115F) or CodePointSet.of(0xA960..0xA97C)
    private val vowels = CodePointSet.of(0x1160..0x11A7) or CodePointSet.of(0xD7B0..0xD7C6)
    private val trailing = CodePointSet.of(0x11A8..0x11FF) or CodePointSet.of(0xD7CB..0xD7FB)
    private val syllables = CodePointSet.of(0xAC00..0xD7A3)

    fun end(text: String, begin: Int): Int {
        var at = begin
        var previous = text.codePointAt(at)
        at += Character.charCount(previous)
        while (at < text.length) {
            val next = text.codePointAt(at)
            if (!joined(previous, next)) break
            at += Character.charCount(next)
            previous = next
        }
        return at
    }

    private fun joined(previous: Int, next: Int): Boolean = when {
        previous == '\r'.code && next == '\n'.code -> true
        previous in controls || next in controls -> false
        next in attached || previous in prepended -> true
        previous in leading -> next in leading || next in vowels || next in syllables
        next in vowels -> previous in vowels || previous in syllables
        next in trailing -> previous in trailing || previous in vowels || previous in syllables
        else -> false
    }
}
