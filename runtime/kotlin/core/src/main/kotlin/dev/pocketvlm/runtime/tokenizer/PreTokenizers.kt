package dev.pocketvlm.runtime.tokenizer

import dev.pocketvlm.runtime.tokenizer.regex.Pattern

/** Splits a text into the words that the model encodes one by one. Gives no empty pieces. */
internal fun interface PreTokenizer {
    fun split(piece: Piece): List<Piece>
}

internal class PreTokenizerSequence(private val steps: List<PreTokenizer>) : PreTokenizer {
    override fun split(piece: Piece): List<Piece> =
        steps.fold(listOf(piece)) { pieces, step -> if (pieces.size == 1) step.split(pieces[0]) else pieces.flatMap(step::split) }
}

/** Splits by GPT-2's pattern, and writes every byte as a character. */
internal class ByteLevelPreTokenizer(private val addPrefixSpace: Boolean, private val useRegex: Boolean) : PreTokenizer {
    override fun split(piece: Piece): List<Piece> {
        val text = if (addPrefixSpace && !piece.text.startsWith(' ')) piece.prepend(" ") else piece
        if (!useRegex) return listOf(ByteAlphabet.encode(text))
        return text.split(Ranges.ofMatches(WORDS.findAll(text.text), text.text.length), SplitBehavior.ISOLATED).map(ByteAlphabet::encode)
    }

    private companion object {
        val WORDS = Pattern("""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""")
    }
}

internal class SplitPreTokenizer(
    private val pattern: TextPattern,
    private val behavior: SplitBehavior,
    private val invert: Boolean,
) : PreTokenizer {
    override fun split(piece: Piece): List<Piece> {
        val ranges = Ranges.ofMatches(pattern.findAll(piece.text), piece.text.length)
        if (invert) ranges.invert()
        return piece.split(ranges, behavior)
    }
}

/** Splits at the characters of a set. */
internal class CharacterSplit(private val separators: CodePointSet, private val behavior: SplitBehavior) : PreTokenizer {
    override fun split(piece: Piece): List<Piece> =
        piece.split(Ranges.ofCharacters(piece.text) { it in separators }, behavior)
}

/** Words of letters and digits, and words of other characters. */
internal object WhitespacePreTokenizer : PreTokenizer {
    private enum class Kind { SPACE, WORD, OTHER }

    private val word = Unicode.quirk("rust_word")

    override fun split(piece: Piece): List<Piece> {
        val ranges = Ranges()
        var last: Kind? = null
        piece.text.forEachCodePoint { index, codePoint ->
            val kind = if (codePoint in Unicode.WHITE_SPACE) Kind.SPACE else if (codePoint in word) Kind.WORD else Kind.OTHER
            if (last != null && kind != last) ranges.add(index, last == Kind.SPACE)
            last = kind
        }
        ranges.add(piece.text.length, last == Kind.SPACE)
        return piece.split(ranges, SplitBehavior.REMOVED)
    }
}

internal object BertPreTokenizer : PreTokenizer {
    private val steps = PreTokenizerSequence(
        listOf(
            CharacterSplit(Unicode.WHITE_SPACE, SplitBehavior.REMOVED),
            CharacterSplit(Unicode.quirk("punctuation"), SplitBehavior.ISOLATED),
        ),
    )

    override fun split(piece: Piece): List<Piece> = steps.split(piece)
}

internal enum class PrependScheme { ALWAYS, FIRST, NEVER }

/** Writes a visible character for a space, and splits before it. */
internal class MetaspacePreTokenizer(
    private val replacement: String,
    private val scheme: PrependScheme,
    private val split: Boolean,
) : PreTokenizer {
    private val spaces = ReplaceNormalizer(TextPattern.literal(" "), replacement)
    private val separator = CodePointSet.of(replacement.codePointAt(0))

    override fun split(piece: Piece): List<Piece> {
        var text = spaces.normalize(piece)
        val prepended = scheme == PrependScheme.ALWAYS || scheme == PrependScheme.FIRST && piece.start == 0
        if (prepended && !text.text.startsWith(replacement)) text = text.prepend(replacement)
        if (!split) return listOf(text)
        return text.split(Ranges.ofCharacters(text.text) { it in separator }, SplitBehavior.MERGED_WITH_NEXT)
    }
}

/** Splits where the script changes. What stands before the first character that has a script is lost, as in the library. */
internal object UnicodeScriptsPreTokenizer : PreTokenizer {
    private val sets = Unicode.scriptNames.associateWith { Unicode.script(it)!! }
    private val scriptless = Unicode.quirk("scriptless")

    override fun split(piece: Piece): List<Piece> {
        val pieces = mutableListOf<Piece>()
        var last: String? = null
        var begin = -1
        piece.text.forEachCodePoint { index, codePoint ->
            val script = scriptOf(codePoint)
            if (script != null && script != last) {
                if (begin >= 0) pieces += piece.slice(begin, index)
                begin = index
                last = script
            }
        }
        if (begin >= 0) pieces += piece.slice(begin, piece.text.length)
        return pieces
    }

    /** Null for a space and for characters without a script, which belong to either side. */
    private fun scriptOf(codePoint: Int): String? {
        if (codePoint in scriptless) return null
        if (codePoint == LONG_VOWEL) return "Han"
        val script = sets.entries.find { codePoint in it.value }?.key
        return if (script == "Hiragana" || script == "Katakana") "Han" else script
    }

    private const val LONG_VOWEL = 0x30FC
}

/** Words of a number of characters. */
internal class FixedLengthPreTokenizer(private val length: Int) : PreTokenizer {
    override fun split(piece: Piece): List<Piece> {
        val ranges = Ranges()
        var count = 0
        piece.text.forEachCodePoint { index, codePoint ->
            if (++count % length == 0) ranges.add(index + Character.charCount(codePoint), false)
        }
        if (count % length != 0) ranges.add(piece.text.length, false)
        return piece.split(ranges, SplitBehavior.ISOLATED)
    }
}
