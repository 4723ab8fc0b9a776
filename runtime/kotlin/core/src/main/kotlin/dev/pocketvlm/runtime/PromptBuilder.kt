package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.tokenizer.Stretch
import dev.pocketvlm.runtime.tokenizer.Tokenizer

/** A prompt as runs of token ids and places of images, in order. */
internal sealed interface PromptPart {
    class Tokens(val ids: IntArray) : PromptPart

    /** The visual tokens of image number [index], counted through the conversation from 0. */
    class Image(val index: Int) : PromptPart
}

/**
 * Turns conversations into token ids for one model.
 *
 * @param addSpecialTokens whether the tokenizer's own post-processor adds its tokens to the rendered prompt.
 * @throws BundleException the image token is none of the tokenizer's added tokens, or the image text does not hold it once.
 */
internal class PromptBuilder(
    private val spec: PromptSpec,
    private val tokenizer: Tokenizer,
    private val addSpecialTokens: Boolean,
) {
    init {
        if (spec.imageToken.isEmpty() || spec.image.split(spec.imageToken).size != 2) {
            throw BundleException(
                "prompt.image '${shorten(spec.image)}' does not hold '${shorten(spec.imageToken)}' exactly once",
                EXPORT_AGAIN,
            )
        }
    }

    private val renderer = PromptRenderer(spec)
    private val imageTokenId = tokenizer.addedTokens[spec.imageToken]
        ?: throw BundleException("tokenizer.json has no added token '${shorten(spec.imageToken)}'", EXPORT_AGAIN)
    private val control = controlTokens()

    /**
     * Renders a conversation and encodes it.
     *
     * The ids equal those that Hugging Face's tokenizer gives for the whole rendered prompt, with the image token once per
     * image. Text in a message that reads like a special token stays text.
     *
     * @throws PromptException the conversation cannot be rendered, or is text that the tokenizer cannot encode.
     */
    fun encode(messages: List<Message>): List<PromptPart> {
        val pieces = renderer.render(messages)
        val stretches = pieces.map {
            when (it) {
                is Piece.Template -> Stretch(it.text, trusted = true)
                is Piece.Content -> Stretch(it.text, trusted = false)
                is Piece.ImageSlot -> Stretch(spec.imageToken, trusted = true)
            }
        }
        val slots = pieces.filterIsInstance<Piece.ImageSlot>()
        val ids = tokenizer.encodeMixed(stretches, control, addSpecialTokens)
        val places = ids.indices.filter { ids[it] == imageTokenId }
        if (places.size != slots.size) {
            throw BundleException(
                "the tokenizer finds ${places.size} image tokens in a prompt with ${slots.size} images",
                "the tokenizer does not fit the prompt data; $EXPORT_AGAIN",
            )
        }
        val parts = ArrayList<PromptPart>()
        var begin = 0
        for ((place, slot) in places.zip(slots)) {
            if (begin < place) parts += PromptPart.Tokens(ids.copyOfRange(begin, place))
            parts += PromptPart.Image(slot.index)
            begin = place + 1
        }
        if (begin < ids.size) parts += PromptPart.Tokens(ids.copyOfRange(begin, ids.size))
        return parts
    }

    /**
     * The added tokens that messages cannot speak with. One that is not "special" (HTML tags, runs of spaces) is ordinary text
     * for the model, unless the template itself speaks with it.
     */
    private fun controlTokens(): Set<String> {
        val tables = listOf(spec.start, spec.between, spec.end, spec.generation, spec.within)
        val template = (tables.flatMap { it.values } + spec.image).joinToString("\n")
        val spoken = tokenizer.addedTokens.keys.filter { it in template && !it.all(Char::isWhitespace) }
        return tokenizer.specialTokens + spoken
    }

    private companion object {
        const val EXPORT_AGAIN = "export the checkpoint again"
    }
}
