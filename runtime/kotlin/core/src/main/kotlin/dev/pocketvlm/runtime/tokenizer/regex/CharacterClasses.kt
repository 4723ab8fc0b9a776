package dev.pocketvlm.runtime.tokenizer.regex

import dev.pocketvlm.runtime.tokenizer.CodePointSet
import dev.pocketvlm.runtime.tokenizer.MalformedTokenizer
import dev.pocketvlm.runtime.tokenizer.Unicode

/** The classes that a pattern can name, as Oniguruma defines them for UTF-8. */
internal object CharacterClasses {
    val NEWLINE: CodePointSet = CodePointSet.of('\n'.code)
    val DIGIT: CodePointSet = Unicode.category("Nd")!!
    val HEX_DIGIT: CodePointSet = ascii("0-9A-Fa-f")

    private val ALPHABETIC: CodePointSet by lazy { Unicode.quirk("alphabetic") }

    /** `\w` outside of brackets, and `\b`: it has the superscript digits and fractions of Latin-1, which `[\w]` has not. */
    val WORD: CodePointSet by lazy { Unicode.quirk("oniguruma_word") }
    val WORD_IN_BRACKETS: CodePointSet by lazy {
        ALPHABETIC or Unicode.category("M")!! or DIGIT or Unicode.category("Pc")!!
    }

    private val LONG_NAMES = mapOf(
        "letter" to "L", "uppercaseletter" to "Lu", "lowercaseletter" to "Ll", "titlecaseletter" to "Lt", "modifierletter" to "Lm",
        "otherletter" to "Lo", "casedletter" to "LC", "mark" to "M", "combiningmark" to "M", "nonspacingmark" to "Mn",
        "spacingmark" to "Mc", "enclosingmark" to "Me", "number" to "N", "decimalnumber" to "Nd", "letternumber" to "Nl",
        "othernumber" to "No", "punctuation" to "P", "punct" to "P", "connectorpunctuation" to "Pc", "dashpunctuation" to "Pd",
        "openpunctuation" to "Ps", "closepunctuation" to "Pe", "initialpunctuation" to "Pi", "finalpunctuation" to "Pf",
        "otherpunctuation" to "Po", "symbol" to "S", "mathsymbol" to "Sm", "currencysymbol" to "Sc", "modifiersymbol" to "Sk",
        "othersymbol" to "So", "separator" to "Z", "spaceseparator" to "Zs", "lineseparator" to "Zl",
        "paragraphseparator" to "Zp", "other" to "C", "control" to "Cc", "format" to "Cf", "unassigned" to "Cn",
        "privateuse" to "Co",
    )

    /** The class of `\p{name}`. */
    fun property(name: String): CodePointSet {
        val plain = name.filterNot { it == ' ' || it == '_' || it == '-' }.lowercase()
        val category = LONG_NAMES[plain] ?: plain.replaceFirstChar { it.uppercaseChar() }.let { if (it == "Lc") "LC" else it }
        return Unicode.category(category)
            ?: Unicode.scriptNames.find { it.replace("_", "").lowercase() == plain }?.let(Unicode::script)
            ?: named(plain)
            ?: throw MalformedTokenizer("the character class \\p{${name.take(MOST_SHOWN)}} is not supported")
    }

    /** The class of `[:name:]`. */
    fun posix(name: String): CodePointSet =
        when (name) {
            "punct" -> Unicode.category("P")!! or Unicode.category("S")!!
            "word" -> WORD_IN_BRACKETS
            else -> named(name)
        } ?: throw MalformedTokenizer("the character class [:${name.take(MOST_SHOWN)}:] is not supported")

    private fun named(name: String): CodePointSet? = when (name) {
        "any" -> CodePointSet.ALL
        "ascii" -> CodePointSet.of(0..0x7F)
        "digit" -> DIGIT
        "space", "whitespace" -> Unicode.WHITE_SPACE
        "blank" -> Unicode.category("Zs")!! or CodePointSet.of('\t'.code)
        "cntrl" -> Unicode.category("Cc")
        "xdigit" -> HEX_DIGIT
        "alpha", "alphabetic" -> ALPHABETIC
        "alnum" -> ALPHABETIC or DIGIT
        else -> null
    }

    private fun ascii(ranges: String): CodePointSet =
        ranges.chunked(3).fold(CodePointSet.EMPTY) { set, range -> set or CodePointSet.of(range[0].code..range[2].code) }

    private const val MOST_SHOWN = 40
}
