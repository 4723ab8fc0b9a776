package dev.pocketvlm.runtime.tokenizer.regex

/**
 * A regular expression of tokenizer.json.
 *
 * These are written for Oniguruma and come from strangers. Java's engine and Android's (ICU) differ from it and from each
 * other in what classes, `\b` or `(?i)` mean, neither can be stopped, and Java's may overflow the stack. Hence an own one.
 */
internal class Pattern(pattern: String) {
    private val program: RegexProgram = RegexCompiler(pattern).compile(RegexParser(pattern).parse())

    /** Beginnings and ends of all matches in turn. An empty match may not follow another match directly. */
    fun findAll(text: String): IntArray {
        val matcher = RegexMatcher(program, text)
        var found = IntArray(32)
        var size = 0
        var from = 0
        var lastEnd = -1
        while (from <= text.length) {
            val end = matcher.find(from)
            if (end < 0) break
            if (end == matcher.begin && end == lastEnd) {
                from += if (from < text.length) Character.charCount(text.codePointAt(from)) else 1
                continue
            }
            if (size == found.size) found = found.copyOf(size * 2)
            found[size++] = matcher.begin
            found[size++] = end
            from = end
            lastEnd = end
        }
        return found.copyOf(size)
    }
}
