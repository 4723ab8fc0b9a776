package dev.pocketvlm.runtime.tokenizer

/**
 * GPT-2's characters for bytes: printable Latin-1 characters stand for themselves, the other bytes follow U+0100.
 */
internal object ByteAlphabet {
    private val chars = CharArray(256)
    private val bytes = IntArray(512) { -1 }

    init {
        var next = 256
        for (byte in 0..255) {
            val printable = byte in 0x21..0x7E || byte in 0xA1..0xAC || byte in 0xAE..0xFF
            chars[byte] = (if (printable) byte else next++).toChar()
            bytes[chars[byte].code] = byte
        }
    }

    val SPACE: Char = charOf(' '.code.toByte())

    fun charOf(byte: Byte): Char = chars[byte.toInt() and 0xFF]

    /** The text with a character for every byte of its UTF-8. */
    fun encode(piece: Piece): Piece {
        val text = piece.text
        if (text.all { it.code < 0x80 }) {
            return piece.withText(String(CharArray(text.length) { chars[text[it].code] }))
        }
        val editor = piece.edit()
        text.forEachCodePoint { index, codePoint -> editor.append(encode(codePoint), index) }
        return editor.finish()
    }

    /** Bytes of a token; those of its UTF-8 if it holds other characters, as an added token may. */
    fun decode(token: String): ByteArray {
        val result = ByteArray(token.length)
        token.forEachIndexed { index, char ->
            val byte = if (char.code < bytes.size) bytes[char.code] else -1
            if (byte < 0) return token.encodeToByteArray()
            result[index] = byte.toByte()
        }
        return result
    }

    private fun encode(codePoint: Int): String =
        if (codePoint < 0x80) chars[codePoint].toString() else Utf8.encode(codePoint).map(::charOf).joinToString("")
}
