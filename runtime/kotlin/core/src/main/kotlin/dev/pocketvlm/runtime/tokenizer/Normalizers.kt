package dev.pocketvlm.runtime.tokenizer

import java.text.Normalizer.Form
import java.text.Normalizer as UnicodeNormalizer

/** Changes a text before it is split. */
internal fun interface Normalizer {
    fun normalize(piece: Piece): Piece
}

internal class NormalizerSequence(private val steps: List<Normalizer>) : Normalizer {
    override fun normalize(piece: Piece): Piece = steps.fold(piece) { current, step -> step.normalize(current) }
}

/** NFC, NFD, NFKC or NFKD, of the platform's Unicode version: normal forms of assigned characters do not change. */
internal class NormalForm(private val form: Form) : Normalizer {
    override fun normalize(piece: Piece): Piece {
        val text = piece.text
        if (text.all { it.code < FIRST_CHANGED } || UnicodeNormalizer.isNormalized(text, form)) return piece
        val whole = UnicodeNormalizer.normalize(text, form)
        val transformation = Transformation(piece)
        var begin = 0
        while (begin < text.length) {
            val end = endOfPart(text, begin)
            normalizePart(text.substring(begin, end), transformation)
            begin = end
        }
        val result = transformation.finish()
        return if (result.text == whole) result else Transformation(piece).also { normalizePart(text, it) }.finish()
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

    /** Every old character is taken apart, which adds characters; every new one is put together, which takes some away. */
    private fun normalizePart(part: String, transformation: Transformation) {
        val fragments = mutableListOf<Pair<Int, Int>>()
        part.forEachCodePoint { _, old ->
            var change = 0
            normalize(old, if (form in COMPATIBLE) Form.NFKD else Form.NFD).forEachCodePoint { _, fragment ->
                fragments += fragment to change
                change = 1
            }
        }
        UnicodeNormalizer.normalize(part, form).forEachCodePoint { _, new ->
            var change = 1
            normalize(new, Form.NFD).forEachCodePoint { _, fragment ->
                val index = fragments.indexOfFirst { it.first == fragment }
                change += (if (index < 0) 0 else fragments.removeAt(index).second) - 1
            }
            transformation.put(new, change)
        }
    }

    private fun normalize(codePoint: Int, form: Form): String = UnicodeNormalizer.normalize(String(Character.toChars(codePoint)), form)

    private companion object {
        const val FIRST_CHANGED = 0xA0
        val MARKS = Unicode.category("M")!!
        val MEDIAL_JAMO = 0x1160..0x11FF
        val COMPATIBLE = setOf(Form.NFKC, Form.NFKD)
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
