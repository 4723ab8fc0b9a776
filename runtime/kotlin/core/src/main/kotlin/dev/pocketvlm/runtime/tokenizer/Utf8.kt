package dev.pocketvlm.runtime.tokenizer

/**
 * UTF-8 whose damaged characters become U+FFFD as Unicode recommends (one for every longest beginning of a character), which
 * is what Rust and Python do. The platforms' own decoders do not all agree on it.
 */
internal object Utf8 {
    const val REPLACEMENT: Char = '\uFFFD'

    fun encode(codePoint: Int): ByteArray = String(Character.toChars(codePoint)).encodeToByteArray()

    fun decode(bytes: ByteArray): String {
        val decoder = Decoder()
        return decoder.push(bytes) + decoder.finish()
    }

    /** Whether all of it is valid. */
    fun isValid(bytes: ByteArray): Boolean {
        val decoder = Decoder()
        decoder.push(bytes)
        decoder.finish()
        return !decoder.damaged
    }

    /** Takes bytes as they come, and keeps the beginning of a character until the rest of it comes. */
    class Decoder {
        private var codePoint = 0
        private var missing = 0
        private var low = LOWEST
        private var high = HIGHEST

        /** ED and a byte after it that makes half of a surrogate pair: Python waits for the third byte before it gives up. */
        private var surrogate = false

        /** Whether a damaged character has been replaced. */
        var damaged: Boolean = false
            private set

        /** Whether the beginning of a character waits for its other bytes. */
        val isInside: Boolean get() = missing > 0

        fun push(bytes: ByteArray): String = buildString(bytes.size) { for (byte in bytes) push(byte.toInt() and 0xFF) }

        /** A character that lacks bytes becomes U+FFFD. */
        fun finish(): String {
            if (missing == 0) return ""
            missing = 0
            damaged = true
            return if (surrogate) "$REPLACEMENT$REPLACEMENT" else REPLACEMENT.toString()
        }

        private fun StringBuilder.push(byte: Int) {
            if (missing > 0) {
                if (missing == 2 && !surrogate && high == LAST_NO_SURROGATE && byte in high + 1..HIGHEST) {
                    surrogate = true
                    damaged = true
                    return
                }
                if (byte in low..high && !surrogate) {
                    low = LOWEST
                    high = HIGHEST
                    codePoint = codePoint shl 6 or (byte and 0x3F)
                    if (--missing == 0) appendCodePoint(codePoint)
                    return
                }
                append(finish())
            }
            begin(byte)
        }

        private fun StringBuilder.begin(byte: Int) {
            low = LOWEST
            high = HIGHEST
            surrogate = false
            when (byte) {
                in 0x00..0x7F -> append(byte.toChar())
                in 0xC2..0xDF -> lead(byte and 0x1F, 1)
                in 0xE0..0xEF -> {
                    lead(byte and 0x0F, 2)
                    if (byte == 0xE0) low = 0xA0
                    if (byte == 0xED) high = LAST_NO_SURROGATE
                }
                in 0xF0..0xF4 -> {
                    lead(byte and 0x07, 3)
                    if (byte == 0xF0) low = 0x90
                    if (byte == 0xF4) high = 0x8F
                }
                else -> {
                    damaged = true
                    append(REPLACEMENT)
                }
            }
        }

        private fun lead(bits: Int, following: Int) {
            codePoint = bits
            missing = following
        }
    }

    private const val LOWEST = 0x80
    private const val HIGHEST = 0xBF
    private const val LAST_NO_SURROGATE = 0x9F
}
