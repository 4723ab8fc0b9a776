package dev.pocketvlm.runtime

/** A stretch of a rendered prompt. */
internal sealed interface Piece {
    /** Text that the chat template writes: its special tokens are special. */
    data class Template(val text: String) : Piece

    /** Text that a message holds: nothing in it is special. */
    data class Content(val text: String) : Piece

    /** The place of the visual tokens of image number [index], counted through the conversation from 0. */
    data class ImageSlot(val index: Int) : Piece
}

/** Writes conversations the way the checkpoint's chat template does, from the bundle's prompt data alone: docs/prompt.md. */
internal class PromptRenderer(private val spec: PromptSpec) {
    private val pairs = spec.between.keys.map { it.replace(IMAGE_SORT, "").split(">") }.filter { it.size == 2 }
    private val openers = spec.start.keys.map { it.removeSuffix(IMAGE_SORT) }.toSet()
    private val closers = spec.generation.keys.map { it.removeSuffix(IMAGE_SORT) }.toSet()

    /**
     * The pieces in order, ending with the text that makes the model answer; template text never follows template text.
     *
     * @throws PromptException an empty conversation or prompt, a role or an order of roles that this model does not know, an
     *   image outside a user message, an empty text in a role that does not take one.
     */
    fun render(messages: List<Message>): List<Piece> {
        if (messages.isEmpty()) throw PromptException("the conversation is empty", "pass at least one user message")
        val conversation = messages.map(::joined)
        check(conversation)
        val items = conversation.flatMapIndexed { number, message ->
            val parts = message.parts.map { Item(message.role, number, it) }
            if (spec.imagesFirst) parts.sortedBy { !it.part.isImage } else parts
        }
        val joints = (listOf(null) + items).zip(items + null) { before, after -> joint(before, after) }
        val texts = joints.map(::textOf)
        val (beforeImage, afterImage) = spec.image.split(spec.imageToken, limit = 2)
        val pieces = ArrayList<Piece>()
        var images = 0
        for ((number, item) in items.withIndex()) {
            append(pieces, texts[number])
            if (item.part is Part.Text) {
                val text = strip(item.part.text, item.role, joints[number].trimKey, joints[number + 1].trimKey)
                if (text.isNotEmpty()) pieces += Piece.Content(text)
            } else {
                append(pieces, beforeImage)
                pieces += Piece.ImageSlot(images++)
                append(pieces, afterImage)
            }
        }
        append(pieces, texts.last())
        return pieces
    }

    /** Several texts of a message that is not the user's are one text. */
    private fun joined(message: Message): Message {
        if (message.role == Role.USER || message.parts.isEmpty() || message.parts.any { it.isImage }) return message
        return Message(message.role, message.parts.joinToString("") { (it as Part.Text).text })
    }

    private fun check(conversation: List<Message>) {
        val roles = openers + pairs.flatten()
        var previous = ""
        for ((number, message) in conversation.withIndex()) {
            val where = "message $number (${message.role})"
            if (message.role !in roles) {
                throw PromptException("$where: this model does not know the role", "it knows ${listed(roles)}")
            }
            if (previous.isEmpty() && message.role !in openers) {
                throw PromptException("$where may not come first", "begin with ${listed(openers)}")
            }
            if (previous.isNotEmpty() && pairs.none { it[0] == previous && it[1] == message.role }) {
                val followers = pairs.filter { it[0] == previous }.map { it[1] }.toSet()
                throw PromptException(
                    "$where may not follow $previous",
                    "after $previous comes ${listed(followers).ifEmpty { "nothing" }}",
                )
            }
            checkParts(message, where, alone = conversation.size == 1)
            previous = message.role
        }
        if (previous !in closers) {
            throw PromptException(
                "message ${conversation.lastIndex} ($previous) may not come last",
                "end with ${listed(closers)}",
            )
        }
    }

    private fun checkParts(message: Message, where: String, alone: Boolean) {
        val texts = message.parts.filterIsInstance<Part.Text>().map { it.text }
        val hasImages = texts.size < message.parts.size
        if (hasImages && message.role != Role.USER) {
            throw PromptException("$where: an image cannot stand here", "images belong into user messages")
        }
        if (message.role == Role.USER && !hasImages && strip(texts.joinToString("")).isEmpty()) {
            // Where there is only one message, its number says nothing to whoever wrote it.
            throw PromptException(
                if (alone) "the prompt is empty" else "$where: the prompt is empty",
                "write a question or add an image",
            )
        }
        if (message.parts.isEmpty() || (message.role !in spec.blank && texts.any { strip(it).isEmpty() })) {
            throw PromptException("$where holds an empty text, which this model's chat template does not take", "leave it out")
        }
        for (text in texts) {
            val half = halfSurrogate(text) ?: continue
            throw PromptException("$where: character $half is half of a surrogate pair", "pass valid Unicode")
        }
    }

    private fun joint(before: Item?, after: Item?): Joint = when {
        before == null -> Joint("start", after!!.sort, ">${after.role}")
        after == null -> Joint("generation", before.sort, "${before.role}>")
        before.message == after.message -> "${before.kind}>${after.kind}".let { Joint("within", it, it) }
        else -> Joint("between", "${before.sort}>${after.sort}", "${before.role}>${after.role}")
    }

    private fun textOf(joint: Joint): String {
        val table = when (joint.table) {
            "start" -> spec.start
            "generation" -> spec.generation
            "between" -> spec.between
            else -> return spec.within[joint.key].orEmpty()
        }
        return table[joint.key] ?: table[joint.key.replace(IMAGE_SORT, "")] ?: throw PromptException(
            "this model's prompt data has no ${joint.table} text for '${joint.key}'",
            "export the checkpoint again",
        )
    }

    private fun strip(text: String, role: String, left: String, right: String): String {
        if (role in spec.trim) return strip(text)
        val begun = if (left in spec.trimLeft) text.trimStart(::isWhiteSpace) else text
        return if (right in spec.trimRight) begun.trimEnd(::isWhiteSpace) else begun
    }

    private fun strip(text: String): String = text.trim(::isWhiteSpace)

    private fun append(pieces: MutableList<Piece>, text: String) {
        if (text.isEmpty()) return
        val last = pieces.lastOrNull()
        if (last is Piece.Template) pieces[pieces.lastIndex] = Piece.Template(last.text + text) else pieces += Piece.Template(text)
    }

    /** One part of a conversation, with the role and the number of its message. */
    private class Item(val role: String, val message: Int, val part: Part) {
        val kind: String = if (part.isImage) "image" else "text"

        /** Role of the message and kind of this part, as the keys of PromptSpec write them. */
        val sort: String = role + if (part.isImage) IMAGE_SORT else ""
    }

    /** The place between two neighbouring parts: [table] of a PromptSpec holds its text under [key]. */
    private class Joint(val table: String, val key: String, val trimKey: String)

    private companion object {
        const val IMAGE_SORT = "+image"

        fun listed(names: Set<String>): String = names.sorted().joinToString(" or ")

        /** What Python's `str.strip` and jinja2's `trim` take: docs/prompt.md lists it. */
        fun isWhiteSpace(character: Char): Boolean = when (character) {
            in '\u0009'..'\u000D', in '\u001C'..'\u0020', '\u0085', '\u00A0', '\u1680', in '\u2000'..'\u200A',
            '\u2028', '\u2029', '\u202F', '\u205F', '\u3000',
            -> true
            else -> false
        }

        /** Where, counted in characters, half of a surrogate pair stands; null where there is none. */
        fun halfSurrogate(text: String): Int? {
            var index = 0
            var count = 0
            while (index < text.length) {
                val pair = index + 1 < text.length && Character.isSurrogatePair(text[index], text[index + 1])
                if (!pair && Character.isSurrogate(text[index])) return count
                index += if (pair) 2 else 1
                count++
            }
            return null
        }
    }
}
