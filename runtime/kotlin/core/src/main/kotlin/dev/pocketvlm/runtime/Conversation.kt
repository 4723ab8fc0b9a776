package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.image.ImageSource

/** Who speaks. */
public object Role {
    public const val SYSTEM: String = "system"
    public const val USER: String = "user"
    public const val ASSISTANT: String = "assistant"
}

/** One part of a message. */
public sealed interface Part {
    /** What somebody wrote: nothing in it is special to the model. */
    public data class Text(val text: String) : Part

    /** An image that [VlmSession.encode] has begun to encode. */
    public class Encoded(public val image: EncodedImage) : Part

    /** An image that is encoded when the question comes, and forgotten after the answer, but for the session's cache. */
    public class Picture(public val source: ImageSource) : Part
}

/**
 * One turn of a conversation: who speaks, and texts and images in their order. Images stand in user messages.
 *
 * @property role one of [Role], as far as the model knows it.
 */
public data class Message(val role: String, val parts: List<Part>) {
    public constructor(role: String, text: String) : this(role, listOf(Part.Text(text)))

    public companion object {
        /** A question about images. */
        public fun user(text: String, vararg images: EncodedImage): Message =
            Message(Role.USER, images.map { Part.Encoded(it) } + Part.Text(text))
    }
}

internal val Part.isImage: Boolean get() = this !is Part.Text
