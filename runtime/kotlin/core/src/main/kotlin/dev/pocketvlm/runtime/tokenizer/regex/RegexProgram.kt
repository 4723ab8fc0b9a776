package dev.pocketvlm.runtime.tokenizer.regex

import dev.pocketvlm.runtime.tokenizer.CodePointSet

/**
 * A regular expression as instructions for [RegexMatcher].
 *
 * @property code an operation and its operands, one after the other; see [Op].
 * @property marks how many places the matcher remembers for loops whose body may match nothing.
 * @property first the characters that a match can begin with, or null if it may be empty.
 */
internal class RegexProgram(val code: IntArray, val sets: Array<CodePointSet>, val marks: Int, val first: CodePointSet?)

/** Operations. Operands that name a place are indices into the code. */
internal object Op {
    /** The program, or the part for a condition or an atomic group, has matched. */
    const val ACCEPT = 0

    /** As ACCEPT, but only where the look behind began. */
    const val ACCEPT_AT_TARGET = 1

    /** char: one character of the basic plane. */
    const val CHAR = 2

    /** set: one character of a set. */
    const val SET = 3

    /** set, least, most, possessive: as many characters of a set as there are. */
    const val RUN = 4

    /** first, second, set: go to the first place, and to the second if that fails; -1 or what the first begins with. */
    const val SPLIT = 5

    /** place. */
    const val JUMP = 6

    /** kind: ordinal of an AnchorKind. */
    const val ANCHOR = 7

    /** negated, next: the part that follows is matched for its result only. */
    const val AHEAD = 8

    /** negated, next, least, most: likewise, ending here; lengths in characters. */
    const val BEHIND = 9

    /** next: the part that follows is matched once and for all. */
    const val ATOMIC = 10

    /** mark: remember this place. */
    const val MARK = 11

    /** mark, next: leave the loop if nothing was matched since the mark. */
    const val LEAVE_IF_EMPTY = 12
}
