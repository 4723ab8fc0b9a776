package dev.pocketvlm.runtime.tokenizer

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Base64

/**
 * The table of replacements of a sentencepiece model: a double array over bytes that says where in a list of texts, each
 * ended by a zero byte, the replacement begins.
 */
internal class PrecompiledNormalizer(charsmap: String) : Normalizer {
    private val units: IntArray
    private val replacements: ByteArray

    init {
        val bytes = try {
            Base64.getDecoder().decode(charsmap)
        } catch (error: IllegalArgumentException) {
            throw MalformedTokenizer("precompiled_charsmap is not base64: ${error.message}")
        }
        val buffer = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)
        if (bytes.size < Int.SIZE_BYTES) throw MalformedTokenizer("precompiled_charsmap is too short")
        val size = buffer.getInt()
        if (size < 0 || size % Int.SIZE_BYTES != 0 || size > buffer.remaining()) {
            throw MalformedTokenizer("precompiled_charsmap: a table of $size bytes does not fit in ${bytes.size} bytes")
        }
        units = IntArray(size / Int.SIZE_BYTES) { buffer.getInt() }
        replacements = ByteArray(buffer.remaining()).also { buffer.get(it) }
        if (!Utf8.isValid(replacements)) throw MalformedTokenizer("precompiled_charsmap holds text that is not UTF-8")
    }

    override fun normalize(piece: Piece): Piece {
        val text = piece.text
        val changes = Changes(piece)
        var begin = 0
        while (begin < text.length) {
            val end = Graphemes.end(text, begin)
            val replacement = if (utf8Length(text, begin, end) < MOST_BYTES) replacement(text, begin, end) else null
            if (replacement != null) {
                changes.replace(text.codePointCount(begin, end), replacement)
            } else {
                characters(text, begin, end, changes)
            }
            begin = end
        }
        return changes.finish()
    }

    private fun characters(text: String, begin: Int, end: Int, changes: Changes) {
        var at = begin
        while (at < end) {
            val codePoint = text.codePointAt(at)
            val next = at + Character.charCount(codePoint)
            val replacement = replacement(text, at, next)
            if (replacement == null) changes.keep(codePoint) else changes.replace(1, replacement)
            at = next
        }
    }

    /** What the table has for the shortest beginning of a text. */
    private fun replacement(text: String, begin: Int, end: Int): String? {
        if (units.isEmpty()) return null
        var node = offset(unit(0))
        for (byte in text.substring(begin, end).encodeToByteArray()) {
            val label = byte.toInt() and 0xFF
            if (label == 0) return null
            node = node xor label
            val unit = unit(node)
            if (unit and LABEL_MASK != label) return null
            node = node xor offset(unit)
            if (unit ushr 8 and 1 == 1) return textAt(unit(node) and VALUE_MASK)
        }
        return null
    }

    private fun unit(index: Int): Int =
        if (index in units.indices) units[index] else throw TokenizerFailure("precompiled_charsmap points outside of itself")

    private fun offset(unit: Int): Int = unit ushr 10 shl (unit and (1 shl 9) ushr 6)

    private fun textAt(begin: Int): String {
        if (begin >= replacements.size) throw TokenizerFailure("precompiled_charsmap points outside of itself")
        var end = begin
        while (end < replacements.size && replacements[end] != 0.toByte()) end++
        return replacements.decodeToString(begin, end)
    }

    private fun utf8Length(text: String, begin: Int, end: Int): Int {
        var length = 0
        var at = begin
        while (at < end && length < MOST_BYTES) {
            val codePoint = text.codePointAt(at)
            length += if (codePoint < 0x80) 1 else if (codePoint < 0x800) 2 else if (codePoint < 0x10000) 3 else 4
            at += Character.charCount(codePoint)
        }
        return length
    }

    /**
     * The new characters of a replacement take the places of the old ones in turn. As in the library, characters that are
     * replaced by nothing at the beginning are forgotten, so that those after them seem to stand there.
     */
    private class Changes(piece: Piece) {
        private val transformation = Transformation(piece)
        private var any = false

        fun keep(codePoint: Int) {
            any = true
            transformation.put(codePoint, 0)
        }

        fun replace(oldCount: Int, new: String) {
            var index = 0
            new.forEachCodePoint { _, codePoint ->
                any = true
                transformation.put(codePoint, if (index++ < oldCount) 0 else 1)
            }
            if (any) repeat(oldCount - index) { transformation.skip() }
        }

        fun finish(): Piece = transformation.finish()
    }

    private companion object {
        const val MOST_BYTES = 6
        const val LABEL_MASK = 1 shl 31 or 0xFF
        const val VALUE_MASK = Int.MAX_VALUE
    }
}
