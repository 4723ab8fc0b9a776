package dev.pocketvlm.runtime.tokenizer.regex

import dev.pocketvlm.runtime.tokenizer.TokenizerFailure

/**
 * Looks for a program in one text. Backtracks as Oniguruma does, but on a stack of its own, and with a limit on its
 * steps: a pattern that runs away becomes a [TokenizerFailure].
 */
internal class RegexMatcher(private val program: RegexProgram, private val text: String) {
    private val code = program.code
    private val sets = program.sets
    private val marks = IntArray(program.marks)
    private var stack = IntArray(3 * 64)
    private var top = 0
    private var steps = 0L
    private val mostSteps = FREE_STEPS + STEPS_PER_CHAR * text.length

    /** Where the match ends that begins at the first place from `from` on, or -1; `begin` says where that is. */
    fun find(from: Int): Int {
        var start = from
        while (start <= text.length) {
            val first = program.first
            if (first == null || start < text.length && text.codePointAt(start) in first) {
                val end = run(0, start, -1)
                if (end >= 0) {
                    begin = start
                    return end
                }
            }
            if (start == text.length) break
            start = after(start)
        }
        return -1
    }

    var begin: Int = -1
        private set

    /** Runs the instructions from `start` on, until they accept. Returns the place in the text, or -1. */
    private fun run(start: Int, place: Int, target: Int): Int {
        val bottom = top
        var pc = start
        var at = place
        while (true) {
            if (++steps > mostSteps) throw TokenizerFailure("a regular expression takes too many steps")
            var next = -1
            when (code[pc]) {
                Op.ACCEPT -> {
                    top = bottom
                    return at
                }
                Op.ACCEPT_AT_TARGET -> if (at == target) {
                    top = bottom
                    return at
                }
                Op.CHAR -> if (at < text.length && text[at].code == code[pc + 1]) {
                    at++
                    next = pc + 2
                }
                Op.SET -> if (at < text.length) {
                    val codePoint = text.codePointAt(at)
                    if (codePoint in sets[code[pc + 1]]) {
                        at += Character.charCount(codePoint)
                        next = pc + 2
                    }
                }
                Op.RUN -> {
                    at = runOfSet(pc, at)
                    if (at >= 0) next = pc + 5
                }
                Op.SPLIT -> {
                    val guard = code[pc + 3]
                    if (guard >= 0 && (at >= text.length || text.codePointAt(at) !in sets[guard])) {
                        next = code[pc + 2]
                    } else {
                        push(code[pc + 2], at, PLAIN)
                        next = code[pc + 1]
                    }
                }
                Op.JUMP -> next = code[pc + 1]
                Op.ANCHOR -> if (holds(ANCHORS[code[pc + 1]], at)) next = pc + 2
                Op.AHEAD -> if ((run(pc + 3, at, -1) >= 0) == (code[pc + 1] == 0)) next = code[pc + 2]
                Op.BEHIND -> if (matchesBehind(pc, at) == (code[pc + 1] == 0)) next = code[pc + 2]
                Op.ATOMIC -> {
                    at = run(pc + 2, at, -1)
                    if (at >= 0) next = code[pc + 1]
                }
                Op.MARK -> {
                    push(code[pc + 1], marks[code[pc + 1]], OLD_MARK)
                    marks[code[pc + 1]] = at
                    next = pc + 2
                }
                Op.LEAVE_IF_EMPTY -> next = if (marks[code[pc + 1]] == at) code[pc + 2] else pc + 3
            }
            if (next < 0) {
                next = backtrack(bottom)
                if (next < 0) return -1
                at = resumeAt
            }
            pc = next
        }
    }

    private var resumeAt = 0

    /** Where to go on, with the place in the text in `resumeAt`; -1 if nothing is left to try. */
    private fun backtrack(bottom: Int): Int {
        while (top > bottom) {
            top -= ENTRY
            val pc = stack[top]
            val at = stack[top + 1]
            when (val kind = stack[top + 2]) {
                PLAIN -> {
                    resumeAt = at
                    return pc
                }
                OLD_MARK -> marks[pc] = at
                else -> {
                    // A run of characters gives one back; `kind` is where it must not shrink any more.
                    resumeAt = at - if (text[at - 1].isLowSurrogate()) 2 else 1
                    if (resumeAt > kind) push(pc, resumeAt, kind)
                    return pc
                }
            }
        }
        return -1
    }

    private fun runOfSet(pc: Int, place: Int): Int {
        val set = sets[code[pc + 1]]
        val least = code[pc + 2]
        val most = code[pc + 3]
        var at = place
        var count = 0
        var shortest = if (least == 0) place else -1
        while (at < text.length && count != most) {
            val codePoint = text.codePointAt(at)
            if (codePoint !in set) break
            at += Character.charCount(codePoint)
            if (++count == least) shortest = at
        }
        steps += count
        if (count < least) return -1
        if (code[pc + 4] == 0 && at > shortest) push(pc + 5, at, shortest)
        return at
    }

    private fun matchesBehind(pc: Int, at: Int): Boolean {
        var start = at
        for (length in 0..code[pc + 4]) {
            if (length >= code[pc + 3] && run(pc + 5, start, at) >= 0) return true
            if (start == 0) return false
            start = before(start)
        }
        return false
    }

    private fun holds(kind: AnchorKind, at: Int): Boolean = when (kind) {
        AnchorKind.TEXT_BEGIN -> at == 0
        AnchorKind.TEXT_END -> at == text.length
        AnchorKind.TEXT_END_OR_LAST_NEWLINE -> at == text.length || at == text.length - 1 && text[at] == '\n'
        AnchorKind.LINE_BEGIN -> at == 0 || at < text.length && text[at - 1] == '\n'
        AnchorKind.LINE_END -> at == text.length || text[at] == '\n'
        AnchorKind.WORD_EDGE -> isWordEdge(at)
        AnchorKind.NO_WORD_EDGE -> !isWordEdge(at)
    }

    private fun isWordEdge(at: Int): Boolean {
        val before = at > 0 && text.codePointBefore(at) in CharacterClasses.WORD
        val after = at < text.length && text.codePointAt(at) in CharacterClasses.WORD
        return before != after
    }

    private fun after(at: Int): Int = at + Character.charCount(text.codePointAt(at))

    private fun before(at: Int): Int = at - Character.charCount(text.codePointBefore(at))

    private fun push(pc: Int, at: Int, kind: Int) {
        if (top + ENTRY > stack.size) {
            if (stack.size > MOST_STACK) throw TokenizerFailure("a regular expression needs too much memory")
            stack = stack.copyOf(stack.size * 2)
        }
        stack[top++] = pc
        stack[top++] = at
        stack[top++] = kind
    }

    private companion object {
        /** Oniguruma gives up after as many attempts at one match. */
        const val FREE_STEPS = 10_000_000L
        const val STEPS_PER_CHAR = 1_000L
        const val MOST_STACK = 8_000_000
        const val ENTRY = 3
        const val PLAIN = -1
        const val OLD_MARK = -2
        val ANCHORS = AnchorKind.entries.toTypedArray()
    }
}
