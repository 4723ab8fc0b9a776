package dev.pocketvlm.runtime.tokenizer

import dev.pocketvlm.runtime.tokenizer.regex.Pattern

/** What Split and Replace look for. */
internal sealed interface TextPattern {
    /** Beginnings and ends of all matches in turn. */
    fun findAll(text: String): IntArray

    /** A text that is not empty, as it is. */
    class Literal(private val literal: String) : TextPattern {
        override fun findAll(text: String): IntArray {
            var found = IntArray(8)
            var size = 0
            var at = text.indexOf(literal)
            while (at >= 0) {
                if (size == found.size) found = found.copyOf(size * 2)
                found[size++] = at
                found[size++] = at + literal.length
                at = text.indexOf(literal, at + literal.length)
            }
            return found.copyOf(size)
        }
    }

    class Expression(pattern: String) : TextPattern {
        private val pattern = Pattern(pattern)

        override fun findAll(text: String): IntArray = pattern.findAll(text)
    }

    companion object {
        fun literal(text: String): TextPattern = if (text.isEmpty()) Expression("") else Literal(text)
    }
}
