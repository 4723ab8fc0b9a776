package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.engine.Tensor

/** The prompt's embeddings, made chunk by chunk from token ids and the images' visual tokens. */
internal class PromptRows(parts: List<PromptPart>, images: List<VisualTokens>, private val decoder: Decoder) : Rows {
    /** What each position stands for: a token id, or a [VisualKey]. */
    val keys: List<Any>

    private val stretches: List<Stretch>

    init {
        val found = ArrayList<Any>()
        stretches = parts.map { part ->
            val start = found.size
            when (part) {
                is PromptPart.Tokens -> {
                    part.ids.forEach(found::add)
                    Stretch(start, part.ids.size, part.ids, null)
                }
                is PromptPart.Image -> {
                    val image = images[part.index]
                    if (image.size != decoder.hiddenSize) {
                        throw BundleException(
                            "the connector gives tokens of size ${image.size}, the decoder takes ${decoder.hiddenSize}",
                            "export the checkpoint again",
                        )
                    }
                    for (number in 0 until image.count) found += VisualKey(image.key, number)
                    Stretch(start, image.count, null, image)
                }
            }
        }
        keys = found
    }

    override val size: Int get() = keys.size

    override fun fill(start: Int, out: Tensor) {
        val end = start + out.shape[1]
        val width = decoder.hiddenSize
        for (stretch in stretches) {
            val low = maxOf(start, stretch.start)
            val high = minOf(end, stretch.start + stretch.count)
            if (low >= high) continue
            val target = out.view((low - start) * width, listOf(1, high - low, width))
            val first = low - stretch.start
            if (stretch.ids != null) {
                decoder.embed(stretch.ids.copyOfRange(first, high - stretch.start), target)
            } else {
                target.floats().put(stretch.image!!.values, first * width, (high - low) * width)
            }
        }
    }

    /** Token ids or an image's tokens, from position [start] on. */
    private class Stretch(val start: Int, val count: Int, val ids: IntArray?, val image: VisualTokens?)
}

/** A visual token: which image, and which of its tokens. */
internal data class VisualKey(val image: String, val number: Int)

/** How many positions at the start of both lists stand for the same. */
internal fun commonPrefix(left: List<Any>, right: List<Any>): Int {
    var count = 0
    while (count < left.size && count < right.size && left[count] == right[count]) count++
    return count
}
