package dev.pocketvlm.runtime.tokenizer

import com.google.gson.JsonObject
import com.google.gson.JsonPrimitive
import dev.pocketvlm.runtime.BundleException
import org.junit.jupiter.api.BeforeAll
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.MethodSource
import java.io.File
import kotlin.random.Random
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

/** Every component by itself against Hugging Face's library: what it gives, and where in the text that comes from. */
class ComponentOracleTest {
    @TempDir
    lateinit var folder: File

    @ParameterizedTest
    @MethodSource("normalizers")
    fun `a normalizer gives the same bytes from the same places`(normalizer: String) {
        // A model of bytes without merges shows the normalized text.
        val json = """{"version": "1.0", "added_tokens": [], "normalizer": $normalizer, "pre_tokenizer": null, "post_processor": null,
            "decoder": null, "model": {"type": "BPE", "byte_fallback": true, "vocab": {$BYTE_VOCABULARY}, "merges": []}}"""
        compare(json, Fixtures.texts + random(150))
    }

    @ParameterizedTest
    @MethodSource("preTokenizers")
    fun `a pre-tokenizer gives the same words from the same places`(preTokenizer: String) {
        compare(wordsJson(preTokenizer), Fixtures.texts + random(150))
    }

    @ParameterizedTest
    @MethodSource("patterns")
    fun `a pattern matches the same`(pattern: String) {
        val split = """{"type": "Split", "pattern": {"Regex": ${JsonPrimitive(pattern)}}, "behavior": "Isolated", "invert": false}"""
        compare(wordsJson(split), PATTERN_TEXTS + Fixtures.texts + random(60))
    }

    @ParameterizedTest
    @MethodSource("wrongPatterns")
    fun `a wrong pattern is refused by both`(pattern: String) {
        val split = """{"type": "Split", "pattern": {"Regex": ${JsonPrimitive(pattern)}}, "behavior": "Isolated", "invert": false}"""
        assertFailsWith<RuntimeException> { Library.open(wordsJson(split)) }
        assertFailsWith<BundleException> { open(wordsJson(split)) }
    }

    @ParameterizedTest
    @MethodSource("postProcessors")
    fun `a post-processor puts the same tokens around the text`(postProcessor: String) {
        val json = """{"version": "1.0", "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "post_processor": $postProcessor, "decoder": null,
            "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "a": 1, "b": 2, "c": 3}}}"""
        compare(json, Fixtures.texts, addTokens = true)
    }

    @ParameterizedTest
    @MethodSource("decoders")
    fun `a decoder gives the same text`(decoder: String) {
        val json = """{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": $decoder, "model": {"type": "WordLevel", "unk_token": "a", "vocab": $DECODED_VOCABULARY}}"""
        val tokenizer = open(json)
        val random = Random(3)
        Library.open(json).use { library ->
            repeat(400) {
                val ids = List(random.nextInt(1, 12)) { random.nextInt(DECODED.size) }
                val expected = library.decode(ids.map { it.toLong() }.toLongArray(), true)
                if (Utf8.REPLACEMENT !in expected || "ByteFallback" !in decoder) assertEquals(expected, tokenizer.pipeline.decode(ids), "$ids")
            }
        }
    }

    private fun compare(json: String, texts: List<String>, addTokens: Boolean = false) {
        val tokenizer = open(json)
        Library.open(json).use { library ->
            for (text in texts) {
                val expected = library.encode(text, addTokens, false)
                val found = tokenizer.pipeline.encode(text, addTokens)
                assertEquals(expected.ids.map { it.toInt() }, found.ids().toList(), "'$text'")
                val spans = found.spans(text)
                // DJL does not say where all tokens come from once there are tokens of a post-processor.
                val wanted = expected.charTokenSpans.mapIndexed { index, span -> if (span == null) spans[index] else span.start to span.end }
                assertEquals(wanted, spans, "'$text'")
            }
        }
    }

    /** As DJL gives them: in code points. */
    private fun Encoding.spans(text: String): List<Pair<Int, Int>> =
        List(size) { text.codePointCount(0, begin(it)) to text.codePointCount(0, end(it)) }

    private fun wordsJson(preTokenizer: String): String = """{"version": "1.0", "added_tokens": [], "normalizer": null,
        "pre_tokenizer": $preTokenizer, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "a": 1, "the": 2}}}"""

    private fun random(count: Int): List<String> = RandomTexts(seed = 4).let { texts -> List(count) { texts.next() } }

    private fun open(json: String): Tokenizer = Tokenizer.open(File(folder, "tokenizer.json").apply { writeText(json) })

    companion object {
        private val BYTE_VOCABULARY = (0..255).joinToString(",") { "\"<0x%02X>\": %d".format(it, it) }
        private val DECODED = listOf(
            "a", "b", "the", "Ġthe", "Ġ", "Ċ", "Ã", "©", "▁a", "▁", "▁▁", "##ing", "##", "a</w>", "</w>", " ", "  ", " a ", ".", "n't", "do",
            "not", "'", "'s", "<0x41>", "<0xC3>", "<0xA9>", "<0x0A>", "<0xFF>", "<0xG1>", "é", "漢", "🙂", "~", "a~b", "xx", "axbx", "",
        )
        private val DECODED_VOCABULARY = JsonObject().apply { DECODED.forEachIndexed { id, token -> addProperty(token, id) } }

        private val PATTERN_TEXTS = listOf(
            "aaa bbb", "ab ab\nab", "a\n\nb\n", "foo123bar", "AbC aBc", "x²y³ a_b-c", "straße", "K ſ s S k", "aab aaab b", "{a} a{2} ]", "\u0000\u0001",
            "a\r\nb\u2028c\u0085d", "ab1 ab2", "漢字kana", "ΑΒγ δ", "xyzzy xyz", "aaaaaaaaaaaaaaaaaaaa", "--a--b--", "a.b.c",
        )

        @JvmStatic
        @BeforeAll
        fun prepare() = Library.prepare()

        @JvmStatic
        fun normalizers(): List<String> = listOf(
            """{"type": "NFC"}""", """{"type": "NFD"}""", """{"type": "NFKC"}""", """{"type": "NFKD"}""", """{"type": "Lowercase"}""",
            """{"type": "Strip", "strip_left": true, "strip_right": true}""", """{"type": "Strip", "strip_left": true, "strip_right": false}""",
            """{"type": "Strip", "strip_left": false, "strip_right": true}""", """{"type": "StripAccents"}""", """{"type": "Nmt"}""",
            """{"type": "Prepend", "prepend": "▁"}""", """{"type": "Prepend", "prepend": "xy"}""", """{"type": "ByteLevel"}""",
            """{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}""",
            """{"type": "Replace", "pattern": {"String": "a"}, "content": ""}""",
            """{"type": "Replace", "pattern": {"String": "ab"}, "content": "xyz"}""",
            """{"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}""",
            """{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}""",
            """{"type": "Replace", "pattern": {"Regex": "x*"}, "content": "-"}""",
            """{"type": "Replace", "pattern": {"Regex": "(?<=a)"}, "content": "🙂"}""",
            """{"type": "Replace", "pattern": {"String": ""}, "content": "-"}""",
            """{"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}""",
            """{"type": "BertNormalizer", "clean_text": false, "handle_chinese_chars": true, "strip_accents": true, "lowercase": false}""",
            """{"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": false, "strip_accents": false, "lowercase": true}""",
            """{"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
                {"type": "Strip", "strip_left": true, "strip_right": true}, {"type": "Prepend", "prepend": "▁"}]}""",
            """{"type": "Sequence", "normalizers": []}""",
        ) + Fixtures.file("xlmr").readText().let { Regex("\\{\"type\":\"Precompiled\"[^}]*\\}").find(it)!!.value }

        @JvmStatic
        fun preTokenizers(): List<String> = buildList {
            for (space in listOf(true, false)) for (regex in listOf(true, false)) {
                add("""{"type": "ByteLevel", "add_prefix_space": $space, "trim_offsets": true, "use_regex": $regex}""")
            }
            for (behavior in listOf("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")) {
                for (invert in listOf(true, false)) {
                    add("""{"type": "Split", "pattern": {"String": " "}, "behavior": "$behavior", "invert": $invert}""")
                    add("""{"type": "Split", "pattern": {"Regex": "\\p{L}|\\d+"}, "behavior": "$behavior", "invert": $invert}""")
                }
                add("""{"type": "Punctuation", "behavior": "$behavior"}""")
            }
            for (scheme in listOf("always", "first", "never")) for (split in listOf(true, false)) {
                add("""{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "$scheme", "split": $split}""")
            }
            add("""{"type": "Metaspace", "replacement": "_", "add_prefix_space": true, "str_rep": "_"}""")
            add("""{"type": "Metaspace", "replacement": "▁", "add_prefix_space": false, "prepend_scheme": "never"}""")
            add("""{"type": "Digits", "individual_digits": true}""")
            add("""{"type": "Digits", "individual_digits": false}""")
            add("""{"type": "Whitespace"}""")
            add("""{"type": "WhitespaceSplit"}""")
            add("""{"type": "BertPreTokenizer"}""")
            add("""{"type": "CharDelimiterSplit", "delimiter": "a"}""")
            add("""{"type": "UnicodeScripts"}""")
            add("""{"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁",
                "prepend_scheme": "first", "split": true}, {"type": "Digits", "individual_digits": true}]}""")
            add("""{"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false}]}""")
        }

        @JvmStatic
        fun patterns(): List<String> = listOf(
            "a", "", "a*", "a*?", "a+?b", "a|b|c", "ab|a", "a|ab", "(a|b)*c", "(?:a*)*", "(?:a|b?)+?c", "(a?)*b", "x{2}", "a{2,}", "a{,2}",
            "a{2,3}", "a{2,3}?", "a{1,2}+", "a{2}?", "(?:ab){2}", "(?:a|b){2,4}c?", "a{", "a{x}", "a{1", "}", "]", "[]a]", "[^]a]", "[a-c]", "[^a-c\\s]",
            "[\\w]", "[^\\w]", "\\w", "\\W", "\\d", "\\D", "\\s", "\\S", "\\h", "\\H", "[\\d_]", "[[:alpha:]]+", "[[:^alpha:]]+", "[[:punct:][:digit:]]", "[[:space:]]",
            "[[:word:]]", "[[:alnum:]]", "[[:xdigit:]]", "[[:cntrl:]]", "[[:blank:]]", "[[:ascii:]]+", "[a-z&&[^aeiou]]", "[^a&&b]", "[a-z&&b-y&&c-x]", "[a[bc]]",
            "\\p{L}", "\\P{L}", "\\p{^L}", "\\p{Lu}\\p{Ll}", "\\p{Letter}", "\\p{Uppercase_Letter}", "\\p{Han}+", "\\p{Hiragana}|\\p{katakana}", "\\p{Greek}", "\\p{Common}", "\\p{M}",
            "\\p{N}", "\\p{Nd}", "\\p{Zs}", "\\p{Cc}", "\\p{Cn}", "\\p{S}", "\\p{Punct}", "\\p{Any}", "\\p{Alpha}", "\\p{ASCII}", "\\p{Alnum}", "\\p{Space}", "\\p{Digit}", "\\p{Old_Italic}",
            "^", "$", "^a", "a$", "\\A", "\\z", "\\Z", "\\b", "\\B", "\\ba", "a\\b", "\\b²", ".", "..", "(?m:.)", "(?m)a.b", "(?-m:.)", "a(?=b)", "a(?!b)", "(?<=a)b", "(?<!a)b",
            "(?<=a|bc)d", "(?<=\\s)\\S", "(?<!\\p{L})\\d", "(?<=(?<=a)b)c", "(?=a)", "(?!a)", "(?>a+)b", "(?>a|ab)c", "a++b", "a?+b", "a*+", "(?:a|b)++c", "(?:ab)*+", "(?i)k",
            "(?i)[k]", "(?i)[^k]", "(?i:abc)", "(?i)\\p{Lu}", "(?i)[\\p{Lu}]", "(?i)[a-c]", "(?i)i", "(?i)σ", "(?i:a)b", "(?-i:a)", "a(?i)b|c", "(?i:(?-i:a)b)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            "\\t", "\\n", "\\r", "\\x41", "\\x{41}", "\\u0041", "\\0", "\\e", "\\.", "\\-", "\\/", "\\ ", "[\\x00-\\x1f]", "[\\-a]", "[a\\-c]", "[a-]", "[-a]", "[\\]]", "[\\b]", "[.]",
            "\\R", "\\N", "\\O", "(?#comment)a", "a(?#b)c", "[一-龥]", "[😀-🙂]", "🙂", "é|e\u0301", "(a)(b)", "(?:)", "()", "a||b", "(|a)", "(a|)", "a**", "a+?+", "(?:a+)+b", "(?:\\s*\\n)+",
            " ?\\p{L}+", "\\s+(?!\\S)", "\\s+$", "(?<!^)a", "(?:^|\\s)a", "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+", "\\p{N}{1,3}(?=(?:\\p{N}{3})*(?:\\P{N}|$))",
            "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+", "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s",
        ).distinct()

        @JvmStatic
        fun wrongPatterns(): List<String> = listOf(
            "(", ")", "(a", "a)", "[", "[a", "*", "+a", "?", "a(*b)", "(?", "(?s)a", "(?<", "\\", "\\p{Nothing}", "\\p{", "[b-a]", "[a-\\d]", "(?=a)*", "^*", "[[:nothing:]]{", "(?Pa)",
        )

        @JvmStatic
        fun postProcessors(): List<String> {
            val template = """{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "b", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "c", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"b": {"id": "b", "ids": [2], "tokens": ["b"]},
                "c": {"id": "c", "ids": [3, 1], "tokens": ["c", "a"]}}}"""
            val bert = """{"type": "BertProcessing", "sep": ["c", 3], "cls": ["b", 2]}"""
            val trim = """{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}"""
            val trimAll = """{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}"""
            val keep = """{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true}"""
            val roberta = """{"type": "RobertaProcessing", "sep": ["c", 3], "cls": ["b", 2], "trim_offsets": true, "add_prefix_space": true}"""
            fun sequence(vararg steps: String) = """{"type": "Sequence", "processors": [${steps.joinToString(",")}]}"""
            return listOf(
                template, bert, trim, trimAll, keep, roberta, sequence(trim, template), sequence(template, trim), sequence(trimAll, bert),
                sequence(template, bert), sequence(bert, template), sequence(), "null",
            )
        }

        @JvmStatic
        fun decoders(): List<String> {
            val replace = """{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}"""
            val strip = """{"type": "Strip", "content": " ", "start": 1, "stop": 0}"""
            return listOf(
                """{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}""", """{"type": "ByteFallback"}""",
                """{"type": "Fuse"}""", strip, """{"type": "Strip", "content": "a", "start": 2, "stop": 0}""", replace,
                """{"type": "Replace", "pattern": {"Regex": "[ax]+"}, "content": "-"}""", """{"type": "Replace", "pattern": {"Regex": "x*"}, "content": "-"}""",
                """{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}""",
                """{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true}""",
                """{"type": "Metaspace", "replacement": "▁", "add_prefix_space": true}""", """{"type": "WordPiece", "prefix": "##", "cleanup": true}""",
                """{"type": "WordPiece", "prefix": "##", "cleanup": false}""", """{"type": "BPEDecoder", "suffix": "</w>"}""",
                """{"type": "BPEDecoder", "suffix": ""}""", """{"type": "Sequence", "decoders": [$replace, {"type": "ByteFallback"}, {"type": "Fuse"}, $strip]}""",
                """{"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "WordPiece", "prefix": "##", "cleanup": true}]}""",
                """{"type": "Sequence", "decoders": []}""", "null",
            )
        }
    }
}
