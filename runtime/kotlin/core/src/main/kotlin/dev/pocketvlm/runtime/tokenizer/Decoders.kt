package dev.pocketvlm.runtime.tokenizer

/** Makes text of tokens: every step takes a list of texts and gives another one, which are joined in the end. */
internal interface Decoder {
    /** Names of the steps that it is made of. */
    val steps: Set<DecoderStep>

    fun decode(tokens: List<String>): List<String>
}

internal enum class DecoderStep { BYTE_LEVEL, BYTE_FALLBACK, FUSE, OTHER }

internal class DecoderSequence(private val decoders: List<Decoder>) : Decoder {
    override val steps: Set<DecoderStep> = decoders.flatMap { it.steps }.toSet()

    override fun decode(tokens: List<String>): List<String> = decoders.fold(tokens) { current, decoder -> decoder.decode(current) }
}

internal object ByteLevelDecoder : Decoder {
    override val steps: Set<DecoderStep> = setOf(DecoderStep.BYTE_LEVEL)

    override fun decode(tokens: List<String>): List<String> {
        val decoder = Utf8.Decoder()
        val text = StringBuilder()
        for (token in tokens) text.append(decoder.push(ByteAlphabet.decode(token)))
        return listOf(text.append(decoder.finish()).toString())
    }
}

/** Makes characters of tokens such as "<0x61>"; a row of them that is not UTF-8 becomes as many U+FFFD. */
internal object ByteFallbackDecoder : Decoder {
    override val steps: Set<DecoderStep> = setOf(DecoderStep.BYTE_FALLBACK)

    override fun decode(tokens: List<String>): List<String> {
        val result = ArrayList<String>(tokens.size)
        val bytes = ArrayList<Byte>()

        fun addBytes() {
            if (bytes.isEmpty()) return
            val array = bytes.toByteArray()
            if (Utf8.isValid(array)) result += Utf8.decode(array) else repeat(array.size) { result += Utf8.REPLACEMENT.toString() }
            bytes.clear()
        }

        for (token in tokens) {
            val byte = byteOf(token)
            if (byte != null) {
                bytes += byte.toByte()
            } else {
                addBytes()
                result += token
            }
        }
        addBytes()
        return result
    }

    private fun byteOf(token: String): Int? {
        if (token.length != 6 || !token.startsWith("<0x") || token[5] != '>' || token[3] == '-') return null
        if (token[3].code >= 0x80 || token[4].code >= 0x80) return null
        return token.substring(3, 5).toIntOrNull(16)
    }
}

internal object FuseDecoder : Decoder {
    override val steps: Set<DecoderStep> = setOf(DecoderStep.FUSE)

    override fun decode(tokens: List<String>): List<String> = listOf(tokens.joinToString(""))
}

/** A decoder that treats every token by itself, or by its place in the list. */
internal class TokenwiseDecoder(private val change: (index: Int, last: Int, token: String) -> String) : Decoder {
    override val steps: Set<DecoderStep> = setOf(DecoderStep.OTHER)

    override fun decode(tokens: List<String>): List<String> =
        tokens.mapIndexed { index, token -> change(index, tokens.lastIndex, token) }
}

internal object Decoders {
    /** Takes a character off the ends of every token, up to a number of times. */
    fun strip(content: Int, left: Int, right: Int): Decoder = TokenwiseDecoder { _, _, token ->
        val codePoints = token.codePoints().toArray()
        var begin = 0
        while (begin < minOf(left, codePoints.size) && codePoints[begin] == content) begin++
        var end = codePoints.size
        while (end > begin && codePoints.size - end < right && codePoints[end - 1] == content) end--
        String(codePoints, begin, end - begin)
    }

    fun replace(pattern: TextPattern, content: String): Decoder = TokenwiseDecoder { _, _, token ->
        val found = if (token.isEmpty()) IntArray(0) else pattern.findAll(token)
        buildString {
            var kept = 0
            for (index in found.indices step 2) {
                append(token, kept, found[index]).append(content)
                kept = found[index + 1]
            }
            append(token, kept, token.length)
        }
    }

    /** A space for the visible character, which the first token loses if it was put there. */
    fun metaspace(replacement: String, scheme: PrependScheme): Decoder = TokenwiseDecoder { index, _, token ->
        token.replace(replacement, if (index == 0 && scheme != PrependScheme.NEVER) "" else " ")
    }

    fun bpe(suffix: String): Decoder = TokenwiseDecoder { index, last, token ->
        val space = if (index == last) "" else " "
        if (suffix.isEmpty()) betweenCharacters(token, space) else token.replace(suffix, space)
    }

    fun wordPiece(prefix: String, cleanUp: Boolean): Decoder = TokenwiseDecoder { index, _, token ->
        val text = if (index == 0) token else if (token.startsWith(prefix)) token.removePrefix(prefix) else " $token"
        if (cleanUp) CLEAN_UPS.fold(text) { current, (old, new) -> current.replace(old, new) } else text
    }

    /** What replacing the empty text does: it is found before every character and at the end. */
    private fun betweenCharacters(token: String, content: String): String = buildString {
        token.forEachCodePoint { _, codePoint -> append(content).appendCodePoint(codePoint) }
        append(content)
    }

    private val CLEAN_UPS = listOf(
        " ." to ".", " ?" to "?", " !" to "!", " ," to ",", " ' " to "'", " n't" to "n't", " 'm" to "'m", " do not" to " don't",
        " 's" to "'s", " 've" to "'ve", " 're" to "'re",
    )
}
