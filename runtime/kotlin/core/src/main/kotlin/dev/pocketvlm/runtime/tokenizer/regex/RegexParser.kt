package dev.pocketvlm.runtime.tokenizer.regex

import dev.pocketvlm.runtime.tokenizer.CodePointSet
import dev.pocketvlm.runtime.tokenizer.MalformedTokenizer
import dev.pocketvlm.runtime.tokenizer.Unicode

/**
 * Reads the syntax that `tokenizers` reads, that of Oniguruma for Ruby. What is not here is refused: back references,
 * calls, conditions, `\K`, `\X`, `\G`, free spacing, and letters whose other case is several letters.
 */
internal class RegexParser(private val pattern: String) {
    private var at = 0
    private var depth = 0

    fun parse(): RegexNode {
        if (pattern.length > MOST_LENGTH) fail("is longer than $MOST_LENGTH characters")
        val node = choice(Options())
        if (at < pattern.length) fail("has a parenthesis too many")
        return node
    }

    private data class Options(val ignoreCase: Boolean = false, val dotAll: Boolean = false)

    private fun choice(options: Options): RegexNode {
        if (++depth > MOST_NESTED) fail("is nested too deeply")
        val branches = mutableListOf(sequence(options))
        while (accept("|")) branches += sequence(options)
        depth--
        return branches.singleOrNull() ?: RegexNode.Choice(branches)
    }

    private fun sequence(options: Options): RegexNode {
        val nodes = mutableListOf<RegexNode>()
        val literal = StringBuilder()
        while (at < pattern.length && pattern[at] != '|' && pattern[at] != ')') {
            val begin = at
            val node = quantified(atom(options))
            nodes += node
            if (options.ignoreCase) {
                literal.append(if (node is RegexNode.Single) pattern.substring(begin, at).lowercase() else "\n")
                if (CaseFolding.isLongFold(literal.toString())) fail("ignores the case of letters that others stand for")
            }
        }
        return nodes.singleOrNull() ?: RegexNode.Sequence(nodes)
    }

    private fun atom(options: Options): RegexNode {
        val codePoint = next()
        return when (codePoint.toChar().takeIf { codePoint < MOST_ASCII }) {
            '(' -> group(options)
            '[' -> RegexNode.Single(brackets(options))
            '.' -> RegexNode.Single(if (options.dotAll) CodePointSet.ALL else CodePointSet.ALL - CharacterClasses.NEWLINE)
            '^' -> RegexNode.Anchor(AnchorKind.LINE_BEGIN)
            '$' -> RegexNode.Anchor(AnchorKind.LINE_END)
            '\\' -> escape(options)
            '*', '+', '?' -> fail("repeats nothing")
            else -> literal(codePoint, options)
        }
    }

    private fun literal(codePoint: Int, options: Options): RegexNode {
        if (!options.ignoreCase) return RegexNode.Single(CodePointSet.of(codePoint))
        if (CaseFolding.foldsToSeveral(codePoint)) fail("ignores the case of a letter that stands for several")
        return RegexNode.Single(CaseFolding.close(codePoint))
    }

    private fun quantified(atom: RegexNode): RegexNode {
        var node = atom
        while (at < pattern.length) {
            val begin = at
            val (least, most) = when (pattern[at]) {
                '*' -> 0 to RegexNode.UNLIMITED
                '+' -> 1 to RegexNode.UNLIMITED
                '?' -> 0 to 1
                '{' -> interval() ?: return node
                else -> return node
            }
            if (node is RegexNode.Anchor || node is RegexNode.Look) fail("repeats a condition")
            if (pattern[begin] != '{') {
                at++
                val mode = if (accept("?")) RepeatMode.LAZY else if (accept("+")) RepeatMode.POSSESSIVE else RepeatMode.GREEDY
                node = RegexNode.Repeat(node, least, most, mode)
            } else {
                // In this syntax {n}? means (?:{n})?, and {n,m}+ means (?:{n,m})+.
                val lazy = (least != most) && accept("?")
                node = RegexNode.Repeat(node, least, most, if (lazy) RepeatMode.LAZY else RepeatMode.GREEDY)
            }
        }
        return node
    }

    /** {n}, {n,}, {,m} or {n,m}; null and nothing read if it is none of them, for then the brace is a brace. */
    private fun interval(): Pair<Int, Int>? {
        val end = pattern.indexOf('}', at)
        val inside = if (end < 0) "" else pattern.substring(at + 1, end)
        if (inside.isEmpty() || inside == "," || inside.any { it !in '0'..'9' && it != ',' } || inside.count { it == ',' } > 1) {
            return null
        }
        val numbers = inside.split(',').map { if (it.isEmpty()) null else it.toIntOrNull() ?: MOST_REPEATS + 1 }
        if (numbers.any { it != null && it > MOST_REPEATS }) fail("repeats more than $MOST_REPEATS times")
        val least = numbers[0] ?: 0
        val most = if (numbers.size == 1) least else numbers[1] ?: RegexNode.UNLIMITED
        if (most in 0 until least) fail("has an interval whose end comes before its beginning")
        at = end + 1
        return least to most
    }

    private fun group(options: Options): RegexNode {
        if (!accept("?")) return choice(options).also { close() }
        return when {
            accept(":") -> choice(options).also { close() }
            accept("=") -> look(options, behind = false, negated = false)
            accept("!") -> look(options, behind = false, negated = true)
            accept(">") -> RegexNode.Atomic(choice(options)).also { close() }
            accept("<=") -> look(options, behind = true, negated = false)
            accept("<!") -> look(options, behind = true, negated = true)
            accept("#") -> comment()
            else -> optionGroup(options)
        }
    }

    private fun look(options: Options, behind: Boolean, negated: Boolean): RegexNode =
        RegexNode.Look(choice(options), behind, negated).also { close() }

    private fun comment(): RegexNode {
        at = pattern.indexOf(')', at)
        if (at < 0) fail("has a comment without an end")
        at++
        return RegexNode.EMPTY
    }

    /** (?i:...), or (?i) which holds to the end of the group around it, its other branches included. */
    private fun optionGroup(outer: Options): RegexNode {
        var options = outer
        var on = true
        while (true) {
            when (if (at < pattern.length) pattern[at++] else fail("has a group without an end")) {
                '-' -> on = false
                'i' -> options = options.copy(ignoreCase = on)
                'm' -> options = options.copy(dotAll = on)
                ':' -> return choice(options).also { close() }
                ')' -> return choice(options)
                else -> fail("has a kind of group that is not supported")
            }
        }
    }

    private fun close() {
        if (!accept(")")) fail("has a parenthesis that is not closed")
    }

    private fun escape(options: Options): RegexNode {
        anchor()?.let { return RegexNode.Anchor(it) }
        if (accept("R")) return NEWLINE_SEQUENCE
        if (accept("N")) return RegexNode.Single(CodePointSet.ALL - CharacterClasses.NEWLINE)
        if (accept("O")) return RegexNode.Single(CodePointSet.ALL)
        classEscape(CharacterClasses.WORD)?.let { return RegexNode.Single(it) }
        return literal(characterEscape(), options)
    }

    private fun anchor(): AnchorKind? {
        val kind = ANCHORS[pattern.getOrNull(at)]
        if (kind != null) at++
        return kind
    }

    private fun classEscape(word: CodePointSet): CodePointSet? {
        val letter = pattern.getOrNull(at) ?: fail("ends with a backslash")
        val set = when (letter.lowercaseChar()) {
            's' -> Unicode.WHITE_SPACE
            'd' -> CharacterClasses.DIGIT
            'w' -> word
            'h' -> CharacterClasses.HEX_DIGIT
            'p' -> return property(letter == 'P')
            else -> return null
        }
        at++
        return if (letter.isUpperCase()) set.inverse() else set
    }

    private fun property(negated: Boolean): CodePointSet {
        at++
        if (!accept("{")) fail("has \\p without braces")
        val inverse = accept("^") != negated
        val end = pattern.indexOf('}', at)
        if (end < 0) fail("has a brace that is not closed")
        val set = CharacterClasses.property(pattern.substring(at, end))
        at = end + 1
        return if (inverse) set.inverse() else set
    }

    private fun characterEscape(): Int {
        val codePoint = next()
        val char = codePoint.toChar()
        if (codePoint >= MOST_ASCII) return codePoint
        CONTROLS[char]?.let { return it }
        return when {
            char == 'x' && accept("{") -> hex(upTo('}')).also { at++ }
            char == 'x' -> hex(hexDigits(2)).also { if (it >= MOST_ASCII) fail("has a byte that is no character") }
            char == 'u' -> hex(hexDigits(4))
            char == '0' && pattern.getOrNull(at)?.isDigit() != true -> 0
            char.isLetterOrDigit() -> fail("has the escape \\$char, which is not supported")
            else -> codePoint
        }
    }

    private fun hexDigits(most: Int): String {
        val digits = pattern.substring(at, minOf(at + most, pattern.length)).takeWhile { Character.digit(it, 16) >= 0 }
        at += digits.length
        if (most == 4 && digits.length < 4) fail("has a code of fewer than four digits")
        return digits
    }

    private fun upTo(end: Char): String {
        val found = pattern.indexOf(end, at)
        if (found < 0) fail("has a brace that is not closed")
        return pattern.substring(at, found).also { at = found }
    }

    private fun hex(digits: String): Int {
        val code = digits.toIntOrNull(16) ?: fail("has a code that is no number")
        if (code !in 0..Character.MAX_CODE_POINT || code in 0xD800..0xDFFF) fail("has a code that is no character")
        return code
    }

    private fun brackets(options: Options): CodePointSet {
        if (++depth > MOST_NESTED) fail("is nested too deeply")
        val negated = accept("^")
        var whole: CodePointSet? = null
        var part = CodePointSet.EMPTY
        var first = true
        while (first || pattern.getOrNull(at) != ']') {
            if (at >= pattern.length) fail("has a bracket that is not closed")
            when {
                accept("&&") -> {
                    whole = whole?.and(part) ?: part
                    part = CodePointSet.EMPTY
                }
                pattern.startsWith("[:", at) && pattern.indexOf(":]", at) > 0 -> part = part or posix()
                accept("[") -> part = part or brackets(options)
                else -> part = part or member(options)
            }
            first = false
        }
        at++
        depth--
        var set = whole?.and(part) ?: part
        if (options.ignoreCase) set = CaseFolding.close(set)
        return if (negated) set.inverse() else set
    }

    private fun posix(): CodePointSet {
        at += 2
        val inverse = accept("^")
        val name = upTo(':')
        at += 2
        return CharacterClasses.posix(name).let { if (inverse) it.inverse() else it }
    }

    /** A character, a range of characters, or a class. */
    private fun member(options: Options): CodePointSet {
        if (accept("\\")) {
            classEscape(CharacterClasses.WORD_IN_BRACKETS)?.let { return it }
            at--
        }
        val first = bracketCharacter()
        if (options.ignoreCase && CaseFolding.foldsToSeveral(first)) fail("ignores the case of a letter that stands for several")
        if (pattern.getOrNull(at) != '-' || pattern.getOrNull(at + 1).let { it == null || it == ']' }) return CodePointSet.of(first)
        at++
        if (pattern[at] == '[') fail("has a range that ends in a class")
        val last = bracketCharacter()
        if (last < first) fail("has a range whose end comes before its beginning")
        return CodePointSet.of(first..last)
    }

    private fun bracketCharacter(): Int {
        if (!accept("\\")) return next()
        if (accept("b")) return '\b'.code
        if (classEscape(CharacterClasses.WORD_IN_BRACKETS) != null) fail("has a range that ends in a class")
        return characterEscape()
    }

    private fun next(): Int {
        if (at >= pattern.length) fail("ends too early")
        return pattern.codePointAt(at).also { at += Character.charCount(it) }
    }

    private fun accept(text: String): Boolean = pattern.startsWith(text, at).also { if (it) at += text.length }

    private fun fail(problem: String): Nothing =
        throw MalformedTokenizer("the regular expression ${pattern.take(MOST_SHOWN)} $problem")

    private companion object {
        const val MOST_ASCII = 0x80
        const val MOST_LENGTH = 20_000
        const val MOST_NESTED = 100
        const val MOST_REPEATS = 1_000
        const val MOST_SHOWN = 60
        val CONTROLS = mapOf('t' to 9, 'n' to 10, 'v' to 11, 'f' to 12, 'r' to 13, 'a' to 7, 'e' to 27)
        val ANCHORS = mapOf(
            'A' to AnchorKind.TEXT_BEGIN,
            'z' to AnchorKind.TEXT_END,
            'Z' to AnchorKind.TEXT_END_OR_LAST_NEWLINE,
            'b' to AnchorKind.WORD_EDGE,
            'B' to AnchorKind.NO_WORD_EDGE,
        )
        val NEWLINE_SEQUENCE = RegexNode.Atomic(
            RegexNode.Choice(
                listOf(
                    RegexNode.Sequence("\r\n".map { RegexNode.Single(CodePointSet.of(it.code)) }),
                    RegexNode.Single(CodePointSet.of(0x0A..0x0D) or CodePointSet.ofAll(listOf(0x85, 0x2028, 0x2029))),
                ),
            ),
        )
    }
}
