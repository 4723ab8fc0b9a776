package dev.pocketvlm.runtime.tokenizer

/**
 * Classes of characters, from [UnicodeTables] and not from the platform: phones know older versions of Unicode than the
 * library whose tokens are wanted. Only lower case and the normal forms come from the platform.
 */
internal object Unicode {
    private val categories = parse(UnicodeTables.CATEGORIES)
    private val scripts = parse(UnicodeTables.SCRIPTS)
    private val quirks = parse(UnicodeTables.QUIRKS)
    private val unassigned by lazy { categories.values.fold(CodePointSet.EMPTY) { set, lazySet -> set or lazySet.value }.inverse() - SURROGATES }

    /** White_Space: what Rust's `char::is_whitespace` and Oniguruma's `\s` mean. */
    val WHITE_SPACE: CodePointSet = CodePointSet.ofBounds(
        intArrayOf(
            0x09, 0x0E, 0x20, 0x21, 0x85, 0x86, 0xA0, 0xA1, 0x1680, 0x1681, 0x2000, 0x200B, 0x2028, 0x202A, 0x202F, 0x2030,
            0x205F, 0x2060, 0x3000, 0x3001,
        ),
    )

    private val SURROGATES = CodePointSet.of(0xD800..0xDFFF)

    fun isWhiteSpace(char: Char): Boolean = char.code in WHITE_SPACE

    /** A general category of one or two letters ("L", "Lu"), or null. */
    fun category(name: String): CodePointSet? = when (name) {
        "Cn" -> unassigned
        "Cs" -> CodePointSet.EMPTY
        "C" -> union("Cc", "Cf", "Co") or unassigned
        "LC" -> union("Lu", "Ll", "Lt")
        "L", "M", "N", "P", "S", "Z" -> union(*categories.keys.filter { it.startsWith(name) }.toTypedArray())
        else -> categories[name]?.value
    }

    val scriptNames: Set<String> get() = scripts.keys

    fun script(name: String): CodePointSet? = scripts[name]?.value

    /** A class that one component of the library has; see make_unicode_tables.py. */
    fun quirk(name: String): CodePointSet = quirks.getValue(name).value

    /** Rust's `char::to_lowercase`: of the characters that have a longer lower case without regard to others there is one. */
    fun lowercase(codePoint: Int): String =
        if (codePoint == 0x130) "i\u0307" else String(Character.toChars(Character.toLowerCase(codePoint)))

    private fun union(vararg names: String): CodePointSet =
        names.fold(CodePointSet.EMPTY) { set, name -> set or categories.getValue(name).value }

    private fun parse(table: String): Map<String, Lazy<CodePointSet>> =
        table.trimEnd().split('\n').associate { line -> line.substringBefore(' ') to lazy { ranges(line.substringAfter(' ')) } }

    private fun ranges(numbers: String): CodePointSet {
        var end = 0
        return CodePointSet.ofBounds(
            numbers.split(' ').map { number ->
                end += number.toInt(36)
                end
            }.toIntArray(),
        )
    }
}

/** Whether no surrogate stands without its other half. */
internal fun String.isWellFormed(): Boolean {
    var index = 0
    while (index < length) {
        if (this[index].isSurrogate()) {
            val pair = this[index].isHighSurrogate() && index + 1 < length && this[index + 1].isLowSurrogate()
            if (!pair) return false
            index++
        }
        index++
    }
    return true
}

internal inline fun String.forEachCodePoint(action: (index: Int, codePoint: Int) -> Unit) {
    var index = 0
    while (index < length) {
        val codePoint = codePointAt(index)
        action(index, codePoint)
        index += Character.charCount(codePoint)
    }
}
