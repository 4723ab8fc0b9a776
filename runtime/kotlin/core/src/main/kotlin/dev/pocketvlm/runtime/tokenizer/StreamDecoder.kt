package dev.pocketvlm.runtime.tokenizer

/**
 * Turns token ids into text as they come, never half of a character.
 *
 * The concatenation of all that [push] and [finish] return equals [Tokenizer.decode] of all ids. A push costs as much as
 * decoding two tokens. Not for use by several threads at once.
 *
 * The tokens of a byte-level tokenizer go through a UTF-8 decoder. For the others, the text of a token is what it adds to
 * the text of its predecessor, since decoders treat a token by its neighbour (the space that a first token loses, "##" of
 * WordPiece); the bytes of a byte-fallback tokenizer wait until they make a character.
 */
public class StreamDecoder(tokenizer: Tokenizer) {
    private val pipeline = tokenizer.pipeline
    private val specialIds = tokenizer.specialIds
    private val steps = pipeline.decoder?.steps.orEmpty()
    private val splitsCharacters = DecoderStep.BYTE_LEVEL in steps
    private val byteLevel = splitsCharacters && steps.all { it == DecoderStep.BYTE_LEVEL || it == DecoderStep.FUSE }
    private val byteFallback = DecoderStep.BYTE_FALLBACK in steps
    private val utf8 = Utf8.Decoder()
    private var bytes = ByteArray(0)
    private var byteIds = emptyList<Int>()
    private var context = emptyList<Int>()
    private var waiting = emptyList<Int>()

    /**
     * Text that is certain after one more token; may be empty. Special and unknown tokens have none.
     *
     * @throws dev.pocketvlm.runtime.BundleException the tokenizer itself fails.
     */
    public fun push(id: Int): String {
        val token = (if (id in specialIds) null else pipeline.token(id)) ?: return ""
        if (byteLevel) return utf8.push(ByteAlphabet.decode(token))
        val byte = if (byteFallback) byteOf(token) else null
        return if (byte != null) pushByte(id, byte) else dropBytes() + pushTokens(listOf(id))
    }

    /**
     * Text that was held back; an unfinished character becomes U+FFFD. Nothing may be pushed afterwards.
     *
     * @throws dev.pocketvlm.runtime.BundleException the tokenizer itself fails.
     */
    public fun finish(): String = if (byteLevel) utf8.finish() else dropBytes() + pushTokens(emptyList(), isLast = true)

    private fun pushTokens(ids: List<Int>, isLast: Boolean = false): String {
        waiting = waiting + ids
        if (waiting.isEmpty()) return ""
        val known = reportingFailure { pipeline.decode(context) }
        val text = reportingFailure { pipeline.decode(context + waiting) }.dropCodePoints(known.codePointCount(0, known.length))
        if (splitsCharacters && text.endsWith(Utf8.REPLACEMENT) && !isLast) return ""
        // A token without text is no neighbour that the next one could lean on.
        context = if (text.isEmpty()) context + waiting else waiting
        waiting = emptyList()
        return text
    }

    /** Whole characters go to the decoder, so that it never sees a row of bytes that is no valid UTF-8. */
    private fun pushByte(id: Int, byte: Byte): String {
        val damaged = if (bytes.isNotEmpty() && state(bytes + byte) == State.DAMAGED) dropBytes() else ""
        bytes += byte
        byteIds = byteIds + id
        return when (state(bytes)) {
            State.DAMAGED -> damaged + dropBytes()
            State.BEGUN -> damaged
            State.WHOLE -> {
                val ids = byteIds
                bytes = ByteArray(0)
                byteIds = emptyList()
                damaged + pushTokens(ids)
            }
        }
    }

    private fun dropBytes(): String {
        if (bytes.isEmpty()) return ""
        bytes = ByteArray(0)
        byteIds = emptyList()
        // U+FFFD now stands first, so what follows must not be decoded as the beginning of the text.
        if (context.isEmpty()) context = reportingFailure { pipeline.encode("a", addTokens = false).ids().asList() }
        return Utf8.REPLACEMENT.toString()
    }

    private enum class State { WHOLE, BEGUN, DAMAGED }

    /** Whether bytes are one character, the beginning of one, or neither. */
    private fun state(bytes: ByteArray): State {
        val decoder = Utf8.Decoder()
        decoder.push(bytes)
        return if (decoder.damaged) State.DAMAGED else if (decoder.isInside) State.BEGUN else State.WHOLE
    }

    private fun byteOf(token: String): Byte? {
        if (token.length != BYTE_TOKEN.length || !token.startsWith("<0x") || !token.endsWith('>')) return null
        val high = hexDigit(token[3])
        val low = hexDigit(token[4])
        return if (high < 0 || low < 0) null else (high * 16 + low).toByte()
    }

    private fun hexDigit(char: Char): Int = if (char.code < 0x80) Character.digit(char, 16) else -1

    private fun String.dropCodePoints(count: Int): String =
        if (count >= codePointCount(0, length)) "" else substring(offsetByCodePoints(0, count))

    private companion object {
        const val BYTE_TOKEN = "<0x00>"
    }
}
