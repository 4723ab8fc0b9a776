package dev.pocketvlm.runtime.tokenizer.regex

import dev.pocketvlm.runtime.tokenizer.CodePointSet
import dev.pocketvlm.runtime.tokenizer.MalformedTokenizer

/** Makes a program of a syntax tree. */
internal class RegexCompiler(private val pattern: String) {
    private var code = IntArray(64)
    private var size = 0
    private val sets = mutableListOf<CodePointSet>()
    private var marks = 0

    fun compile(node: RegexNode): RegexProgram {
        emit(node)
        emit(Op.ACCEPT)
        return RegexProgram(code.copyOf(size), sets.toTypedArray(), marks, node.first())
    }

    private fun emit(node: RegexNode) {
        when (node) {
            is RegexNode.Single -> single(node.set)
            is RegexNode.Sequence -> node.nodes.forEach(::emit)
            is RegexNode.Choice -> choice(node.branches)
            is RegexNode.Repeat -> repeat(node)
            is RegexNode.Look -> look(node)
            is RegexNode.Atomic -> atomic(node.node)
            is RegexNode.Anchor -> emit(Op.ANCHOR, node.kind.ordinal)
        }
    }

    private fun single(set: CodePointSet) {
        val codePoint = set.single
        if (codePoint != null && codePoint < 0x10000) emit(Op.CHAR, codePoint) else emit(Op.SET, index(set))
    }

    private fun choice(branches: List<RegexNode>) {
        val ends = mutableListOf<Int>()
        branches.dropLast(1).forEach { branch ->
            val split = emit(Op.SPLIT, size + 4, 0, guard(branch))
            emit(branch)
            ends += emit(Op.JUMP, 0)
            code[split + 2] = size
        }
        emit(branches.last())
        ends.forEach { code[it + 1] = size }
    }

    /** (?:x+)* is x*, and so on: written as it stands, the ways to match it would be without number. */
    private fun simplified(node: RegexNode.Repeat): RegexNode.Repeat {
        val inner = node.node as? RegexNode.Repeat ?: return node
        val simple = listOf(node, inner).all { it.mode == RepeatMode.GREEDY && it.least <= 1 && it.most in setOf(1, RegexNode.UNLIMITED) }
        if (!simple) return node
        val most = if (node.most == 1 && inner.most == 1) 1 else RegexNode.UNLIMITED
        return simplified(RegexNode.Repeat(inner.node, node.least * inner.least, most, RepeatMode.GREEDY))
    }

    private fun repeat(original: RegexNode.Repeat) {
        val node = simplified(original)
        val body = node.node
        when {
            body is RegexNode.Single && node.mode != RepeatMode.LAZY -> {
                emit(Op.RUN, index(body.set), node.least, node.most, if (node.mode == RepeatMode.POSSESSIVE) 1 else 0)
            }
            node.mode == RepeatMode.POSSESSIVE -> atomic(RegexNode.Repeat(body, node.least, node.most, RepeatMode.GREEDY))
            else -> {
                repeat(node.least) { emit(body) }
                if (node.most == RegexNode.UNLIMITED) loop(body, node.mode) else optional(body, node.most - node.least, node.mode)
            }
        }
    }

    private fun loop(body: RegexNode, mode: RepeatMode) {
        val split = split(body, mode)
        val mayBeEmpty = body.lengths().first == 0
        val mark = marks
        var leave = -1
        if (mayBeEmpty) {
            marks++
            emit(Op.MARK, mark)
        }
        emit(body)
        if (mayBeEmpty) leave = emit(Op.LEAVE_IF_EMPTY, mark, 0)
        emit(Op.JUMP, split)
        endSplit(split, mode)
        if (leave >= 0) code[leave + 2] = size
    }

    private fun optional(body: RegexNode, times: Int, mode: RepeatMode) {
        val splits = List(times) { split(body, mode).also { emit(body) } }
        splits.forEach { endSplit(it, mode) }
    }

    private fun split(body: RegexNode, mode: RepeatMode): Int =
        if (mode == RepeatMode.LAZY) emit(Op.SPLIT, 0, size + 4, -1) else emit(Op.SPLIT, size + 4, 0, guard(body))

    private fun endSplit(split: Int, mode: RepeatMode) {
        code[split + if (mode == RepeatMode.LAZY) 1 else 2] = size
    }

    private fun atomic(body: RegexNode) {
        val start = emit(Op.ATOMIC, 0)
        emit(body)
        emit(Op.ACCEPT)
        code[start + 1] = size
    }

    private fun look(node: RegexNode.Look) {
        val negated = if (node.negated) 1 else 0
        val start: Int
        if (node.behind) {
            val (least, most) = node.node.lengths()
            if (most == RegexNode.UNLIMITED || most > MOST_BEHIND) fail("looks behind without a limit")
            start = emit(Op.BEHIND, negated, 0, least, most)
        } else {
            start = emit(Op.AHEAD, negated, 0)
        }
        emit(node.node)
        emit(if (node.behind) Op.ACCEPT_AT_TARGET else Op.ACCEPT)
        code[start + 2] = size
    }

    private fun guard(node: RegexNode): Int = node.first()?.let(::index) ?: -1

    private fun index(set: CodePointSet): Int {
        sets += set
        return sets.size - 1
    }

    private fun emit(vararg words: Int): Int {
        if (size + words.size > MOST_WORDS) fail("is too large")
        if (size + words.size > code.size) code = code.copyOf(code.size * 2)
        words.copyInto(code, size)
        size += words.size
        return size - words.size
    }

    private fun fail(problem: String): Nothing = throw MalformedTokenizer("the regular expression ${pattern.take(60)} $problem")

    private companion object {
        const val MOST_WORDS = 200_000
        const val MOST_BEHIND = 255
    }
}

/** The fewest and the most characters that a node matches; UNLIMITED if there is no limit. */
internal fun RegexNode.lengths(): Pair<Int, Int> = when (this) {
    is RegexNode.Single -> 1 to 1
    is RegexNode.Sequence -> nodes.map { it.lengths() }.fold(0 to 0) { sum, next -> sum.first + next.first to add(sum.second, next.second) }
    is RegexNode.Choice -> branches.map { it.lengths() }.let { all ->
        all.minOf { it.first } to if (all.any { it.second == RegexNode.UNLIMITED }) RegexNode.UNLIMITED else all.maxOf { it.second }
    }
    is RegexNode.Repeat -> node.lengths().let { (fewest, largest) ->
        val most = if (largest == 0) 0 else if (most == RegexNode.UNLIMITED || largest == RegexNode.UNLIMITED) RegexNode.UNLIMITED else times(most, largest)
        times(fewest, least) to most
    }
    is RegexNode.Look, is RegexNode.Anchor -> 0 to 0
    is RegexNode.Atomic -> node.lengths()
}

private fun add(a: Int, b: Int): Int = if (a == RegexNode.UNLIMITED || b == RegexNode.UNLIMITED) RegexNode.UNLIMITED else a + b

private fun times(a: Int, b: Int): Int = (a.toLong() * b).coerceAtMost(1_000_000).toInt()

/** The characters that a match of a node can begin with, or null if it may be empty. */
private fun RegexNode.first(): CodePointSet? = when (this) {
    is RegexNode.Single -> set
    is RegexNode.Sequence -> firstOfSequence(nodes)
    is RegexNode.Choice -> union(branches.map { it.first() })
    is RegexNode.Repeat -> if (least == 0) null else node.first()
    is RegexNode.Look, is RegexNode.Anchor -> null
    is RegexNode.Atomic -> node.first()
}

/** As in `[^\s]?\p{L}+`: the parts that may be left out, and the first that may not. */
private fun firstOfSequence(nodes: List<RegexNode>): CodePointSet? {
    var set = CodePointSet.EMPTY
    for (node in nodes) {
        if (node is RegexNode.Look || node is RegexNode.Anchor) continue
        if (node is RegexNode.Repeat && node.least == 0) {
            set = set or (node.node.first() ?: return null)
        } else {
            return set or (node.first() ?: return null)
        }
    }
    return null
}

private fun union(sets: List<CodePointSet?>): CodePointSet? =
    if (sets.any { it == null }) null else sets.fold(CodePointSet.EMPTY) { all, set -> all or set!! }
