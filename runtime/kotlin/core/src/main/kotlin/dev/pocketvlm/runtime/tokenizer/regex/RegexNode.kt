package dev.pocketvlm.runtime.tokenizer.regex

import dev.pocketvlm.runtime.tokenizer.CodePointSet

/** Syntax tree of a regular expression. */
internal sealed interface RegexNode {
    /** One character of a set. */
    class Single(val set: CodePointSet) : RegexNode

    /** One node after the other; matches the empty text if there is none. */
    class Sequence(val nodes: List<RegexNode>) : RegexNode

    /** The first of the branches that leads to a match. */
    class Choice(val branches: List<RegexNode>) : RegexNode

    /** @property most UNLIMITED if there is no limit. */
    class Repeat(val node: RegexNode, val least: Int, val most: Int, val mode: RepeatMode) : RegexNode

    /** Text before or after this place, which does not become part of the match. */
    class Look(val node: RegexNode, val behind: Boolean, val negated: Boolean) : RegexNode

    /** Once matched it is not matched in another way. */
    class Atomic(val node: RegexNode) : RegexNode

    /** A condition on the place. */
    class Anchor(val kind: AnchorKind) : RegexNode

    companion object {
        const val UNLIMITED: Int = -1
        val EMPTY: RegexNode = Sequence(emptyList())
    }
}

internal enum class RepeatMode { GREEDY, LAZY, POSSESSIVE }

internal enum class AnchorKind { TEXT_BEGIN, TEXT_END, TEXT_END_OR_LAST_NEWLINE, LINE_BEGIN, LINE_END, WORD_EDGE, NO_WORD_EDGE }
