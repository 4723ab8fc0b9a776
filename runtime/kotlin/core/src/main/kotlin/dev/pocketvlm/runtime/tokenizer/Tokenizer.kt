package dev.pocketvlm.runtime.tokenizer

import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.PromptException
import dev.pocketvlm.runtime.UsageException
import java.io.File
import java.util.Collections
import java.util.concurrent.ConcurrentHashMap

/**
 * A part of a prompt.
 *
 * @property trusted whether the runtime wrote it: only then do special tokens in it count.
 */
public data class Stretch(val text: String, val trusted: Boolean)

/**
 * A tokenizer.json of Hugging Face's `tokenizers`, without its padding and truncation: text to token ids and back.
 *
 * It gives the ids that the library gives for the same file, whatever Unicode the platform knows, but for two things that
 * come from the platform: lower case, and the normal forms NFC, NFD, NFKC and NFKD. Both are the same for all characters
 * that the platform's version of Unicode has (Java 17: Unicode 13; Android 8: Unicode 9).
 *
 * May be used by several threads.
 */
public class Tokenizer internal constructor(internal val pipeline: Pipeline) {
    private val tokens = pipeline.added.tokensById
    private val flags = tokens.values.associateBy { it.content }
    private val guards = ConcurrentHashMap<Set<String>, TokenGuard>()

    /** Tokens that are found in text before the model splits it, special or not, with their ids. */
    public val addedTokens: Map<String, Int> =
        Collections.unmodifiableMap(tokens.entries.associate { (id, token) -> token.content to id })

    /** The added tokens that are marked as special: [decode] leaves them out. */
    public val specialTokens: Set<String> = Collections.unmodifiableSet(flags.values.filter { it.special }.map { it.content }.toSet())

    /** Ids of [specialTokens]. */
    public val specialIds: Set<Int> = Collections.unmodifiableSet(tokens.filterValues { it.special }.keys.toSet())

    /** Id of the token that stands for what the vocabulary cannot express, if there is one. */
    public val unknownId: Int? = when (val model = pipeline.model) {
        is Unigram -> model.unknownId
        else -> model.unknownToken?.let(pipeline::id)
    }

    /** Largest id that text can become, -1 if there is none: special tokens are not made from text. */
    public val largestTextId: Int =
        maxOf(pipeline.model.vocabulary.largestId, tokens.filterValues { !it.special }.keys.maxOrNull() ?: -1)

    /** Id of a token by its exact name, or null. */
    public fun tokenId(token: String): Int? = pipeline.id(token)

    /**
     * Token ids of `text`; nothing is added at its ends.
     *
     * @param special whether special tokens that stand in the text are recognised; otherwise they are plain text.
     * @throws PromptException see [encodeMixed].
     * @throws BundleException see [encodeMixed].
     */
    public fun encode(text: String, special: Boolean): IntArray = encodeMixed(listOf(Stretch(text, special)), specialTokens)

    /**
     * Encodes text that is put together from trusted and untrusted stretches, as one text.
     *
     * Where no control token touches an untrusted stretch, the whole text is encoded as it is: merges and prefix spaces at
     * the seams come out as Hugging Face's. Otherwise a second tokenizer encodes it, see [TokenGuard].
     *
     * @param stretches the parts in order.
     * @param control the added tokens that are recognised in trusted stretches only.
     * @param addSpecialTokens lets the tokenizer's post-processor add its tokens at the ends.
     * @throws PromptException an untrusted stretch gives a control token however it is split, or half of a surrogate pair
     *   stands in a stretch.
     * @throws BundleException the tokenizer itself fails, for example because a pattern in it runs away.
     * @throws UsageException `control` names a token that is no added token.
     */
    public fun encodeMixed(stretches: List<Stretch>, control: Set<String>, addSpecialTokens: Boolean = false): IntArray {
        if (!stretches.all { it.text.isWellFormed() }) {
            throw PromptException("the text is not valid Unicode", "it holds half of a surrogate pair")
        }
        val names = control.associateBy { addedTokens[it] ?: throw UsageException("'$it' is no added token of the tokenizer") }
        val text = stretches.joinToString("") { it.text }
        return reportingFailure {
            val encoding = pipeline.encode(text, addSpecialTokens)
            val touches = touchesUntrusted(encoding, text, stretches, names, unknownId)
            if (touches) guard(control).encode(stretches, addSpecialTokens) else encoding.ids()
        }
    }

    /**
     * Text of token ids, special tokens left out.
     *
     * As Hugging Face's, but for one thing: where bytes of a byte-fallback tokenizer are no valid UTF-8, only the damaged
     * characters become U+FFFD, not every byte of the run, so that it equals what was streamed.
     *
     * @throws BundleException the tokenizer itself fails.
     */
    public fun decode(ids: List<Int>): String {
        val text = reportingFailure { pipeline.decode(ids) }
        if (Utf8.REPLACEMENT !in text) return text
        val stream = StreamDecoder(this)
        return ids.joinToString("") { stream.push(it) } + stream.finish()
    }

    /** See [decode]. */
    public fun decode(ids: IntArray): String = decode(ids.asList())

    private fun guard(control: Set<String>): TokenGuard = guards.getOrPut(control.toSet()) {
        TokenGuard(pipeline, control.sorted().map(flags::getValue), unknownId)
    }

    public companion object {
        /** Larger files are not read. */
        public const val MAX_BYTES: Long = 128L * 1024 * 1024

        /**
         * Reads a tokenizer.json.
         *
         * @param name what messages call it.
         * @throws BundleException the file is missing, larger than [MAX_BYTES], no valid tokenizer, or needs a component that
         *   is not supported; the message says which.
         */
        public fun open(file: File, name: String = file.path): Tokenizer = Tokenizer(TokenizerFile(file, name).read())
    }
}
