package dev.pocketvlm.runtime.tokenizer

/** Puts tokens around those of the text. The result is a list of encodings, to be read one after the other. */
internal fun interface PostProcessor {
    fun process(encodings: List<Encoding>, addTokens: Boolean): List<Encoding>
}

internal class PostProcessorSequence(private val steps: List<PostProcessor>) : PostProcessor {
    override fun process(encodings: List<Encoding>, addTokens: Boolean): List<Encoding> =
        steps.fold(encodings) { current, step -> step.process(current, addTokens) }
}

/** A part of a template: one of the encodings, or tokens. */
internal sealed interface TemplatePart {
    class Text(val index: Int) : TemplatePart

    class Special(val ids: List<Int>, val tokens: List<String>) : TemplatePart
}

/** A template for one encoding, and one for the two that a step before may have made of it. */
internal class TemplatePostProcessor(private val single: List<TemplatePart>, private val pair: List<TemplatePart>) : PostProcessor {
    override fun process(encodings: List<Encoding>, addTokens: Boolean): List<Encoding> {
        val template = when (encodings.size) {
            1 -> single
            2 -> pair
            else -> throw TokenizerFailure("a template gets ${encodings.size} encodings")
        }
        return template.mapNotNull { part ->
            when (part) {
                is TemplatePart.Text -> encodings.getOrNull(part.index) ?: throw TokenizerFailure("a template wants a second text")
                is TemplatePart.Special -> if (addTokens) special(part) else null
            }
        }
    }

    private fun special(part: TemplatePart.Special): Encoding =
        Encoding().also { encoding -> part.ids.forEachIndexed { index, id -> encoding.add(id, 0, 0, part.tokens[index], isAdded = true) } }
}

/** A token with its id, as BERT's and RoBERTa's post-processors name them. */
internal class NamedToken(val name: String, val id: Int)

/** [CLS] before the text and [SEP] after it. */
internal class BertPostProcessor(private val separator: NamedToken, private val beginning: NamedToken) : PostProcessor {
    override fun process(encodings: List<Encoding>, addTokens: Boolean): List<Encoding> {
        if (!addTokens) return encodings
        return encodings.mapIndexed { index, encoding ->
            Encoding().apply {
                if (index == 0) add(beginning)
                addAll(encoding, keepAdded = false)
                add(separator)
            }
        }
    }

    private fun Encoding.add(token: NamedToken) = add(token.id, 0, 0, token.name, isAdded = true)
}

/** Takes the white space off the places that byte-level tokens come from. */
internal class OffsetTrimmer(private val addPrefixSpace: Boolean) : PostProcessor {
    override fun process(encodings: List<Encoding>, addTokens: Boolean): List<Encoding> {
        for (encoding in encodings) for (index in 0 until encoding.size) trim(encoding, index)
        return encodings
    }

    private fun trim(encoding: Encoding, index: Int) {
        val token = encoding.value(index)
        var leading = token.indexOfFirst { !isSpace(it) }.let { if (it < 0) token.length else it }
        val trailing = token.length - 1 - token.indexOfLast { !isSpace(it) }
        var begin = encoding.begin(index)
        var end = encoding.end(index)
        if (leading > 0) {
            // A space that was put before the text has no place in it.
            if ((index == 0 || begin == 0) && addPrefixSpace && leading == 1) leading = 0
            begin = minOf(begin + leading, end)
        }
        if (trailing > 0 && end >= trailing) end = maxOf(end - trailing, begin)
        encoding.move(index, begin, end)
    }

    private fun isSpace(char: Char): Boolean = char == ByteAlphabet.SPACE || Unicode.isWhiteSpace(char)
}
