package dev.pocketvlm.runtime.tokenizer

import java.text.Normalizer as UnicodeNormalizer

/** Changes a text before it is split. */
internal fun interface Normalizer {
    fun normalize(piece: Piece): Piece
}

internal class NormalizerSequence(private val steps: List<Normalizer>) : Normalizer {
    override fun normalize(piece: Piece): Piece = steps.fold(piece) { current, step -> step.normalize(current) }
}

/** NFC, NFD, NFKC or NFKD, of the platform's Unicode version: normal forms of assigned characters do not change. */
internal class NormalForm(private val form: UnicodeNormalizer.Form) : Normalizer {
    override fun normalize(piece: Piece): Piece {
        val text = piece.text
        if (text.all { it.code < FIRST_CHANGED } || UnicodeNormalizer.isNormalized(text, form)) return piece
        val whole = UnicodeNormalizer.normalize(text, form)
        val parts = Parts(piece)
        var begin = 0
        while (begin < text.length) {
            val end = endOfPart(text, begin)
            parts.add(begin, end)
            begin = end
        }
        return parts.finish().takeIf { it.text == whole } ?: Parts(piece).apply { add(0, text.length) }.finish()
    }

    /** A base character and its marks change together. */
    private fun endOfPart(text: String, begin: Int): Int {
        var end = begin + Character.charCount(text.codePointAt(begin))
        while (end < text.length) {
            val codePoint = text.codePointAt(end)
            if (codePoint !in MARKS && codePoint !in MEDIAL_JAMO) break
            end += Character.charCount(codePoint)
        }
        return end
    }

    private inner class Parts(private val piece: Piece) {
        private val editor = piece.edit()

        /** The first new character comes from the first old one and so on; those too many come from the last. */
        fun add(begin: Int, end: Int) {
            val part = piece.text.substring(begin, end)
            var from = begin
            UnicodeNormalizer.normalize(part, form).forEachCodePoint { _, codePoint ->
                editor.append(codePoint, from)
                val next = from + Character.charCount(piece.text.codePointAt(from))
                if (next < end) from = next
            }
        }

        fun finish(): Piece = editor.finish()
    }

    private companion object {
        const val FIRST_CHANGED = 0xA0
        val MARKS = Unicode.category("M")!!
        val MEDIAL_JAMO = 0x1160..0x11FF
    }
}

internal object LowercaseNormalizer : Normalizer {
    override fun normalize(piece: Piece): Piece {
        val editor = piece.edit()
        piece.text.forEachCodePoint { index, codePoint -> editor.append(Unicode.lowercase(codePoint), index) }
        return editor.finish()
    }
}

/** Removes white space at the ends. */
internal class StripNormalizer(private val left: Boolean, private val right: Boolean) : Normalizer {
    override fun normalize(piece: Piece): Piece {
        val text = piece.text
        var begin = 0
        var end = text.length
        if (left) while (begin < end && Unicode.isWhiteSpace(text[begin])) begin++
        if (right) while (end > begin && Unicode.isWhiteSpace(text[end - 1])) end--
        val editor = piece.edit()
        text.forEachCodePoint { index, _ -> if (index in begin until end) editor.keep(index) }
        return editor.finish()
    }
}

/** Removes the characters of a set. */
internal class RemovingNormalizer(private val removed: CodePointSet) : Normalizer {
    override fun normalize(piece: Piece): Piece {
        val editor = piece.edit()
        piece.text.forEachCodePoint { index, codePoint -> if (codePoint !in removed) editor.keep(index) }
        return editor.finish()
    }
}

internal class ReplaceNormalizer(private val pattern: TextPattern, private val content: String) : Normalizer {
    override fun normalize(piece: Piece): Piece {
        val found = pattern.findAll(piece.text)
        if (found.isEmpty()) return piece
        if (content.length == 1 && (found.indices step 2).all { found[it + 1] == found[it] + 1 }) return sameLength(piece, found)
        val editor = piece.edit()
        var kept = 0
        for (index in found.indices step 2) {
            keep(piece, editor, kept, found[index])
            kept = found[index + 1]
            // What is put in comes from the last character that it replaces.
            if (kept == 0) {
                editor.append(content, piece.start, piece.start)
            } else {
                editor.append(content, kept - Character.charCount(piece.text.codePointBefore(kept)))
            }
        }
        keep(piece, editor, kept, piece.text.length)
        return editor.finish()
    }

    private fun sameLength(piece: Piece, found: IntArray): Piece {
        val chars = piece.text.toCharArray()
        for (index in found.indices step 2) chars[found[index]] = content[0]
        return piece.withText(String(chars))
    }

    private fun keep(piece: Piece, editor: Piece.Editor, from: Int, to: Int) {
        var at = from
        while (at < to) {
            editor.keep(at)
            at += Character.charCount(piece.text.codePointAt(at))
        }
    }
}

internal class PrependNormalizer(private val prefix: String) : Normalizer {
    override fun normalize(piece: Piece): Piece = piece.prepend(prefix)
}

/** Puts a text before the first character, if there is one. */
internal fun Piece.prepend(prefix: String): Piece {
    if (text.isEmpty()) return this
    val editor = edit()
    editor.append(prefix, 0)
    text.forEachCodePoint { index, _ -> editor.keep(index) }
    return editor.finish()
}

internal object ByteLevelNormalizer : Normalizer {
    override fun normalize(piece: Piece): Piece = ByteAlphabet.encode(piece)
}

/** The normalization that sentencepiece had before it had tables. */
internal object NmtNormalizer : Normalizer {
    private val removed = CodePointSet.of(0x01..0x08) or CodePointSet.of(0x0E..0x1F) or
        CodePointSet.ofAll(listOf(0x0B, 0x7F, 0x8F, 0x9F))
    private val blank = CodePointSet.of(0x200B..0x200F) or
        CodePointSet.ofAll(listOf(0x09, 0x0A, 0x0C, 0x0D, 0x1680, 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD))

    override fun normalize(piece: Piece): Piece {
        val editor = piece.edit()
        piece.text.forEachCodePoint { index, codePoint ->
            if (codePoint in blank) editor.append(" ", index) else if (codePoint !in removed) editor.keep(index)
        }
        return editor.finish()
    }
}
