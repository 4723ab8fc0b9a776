package dev.pocketvlm.runtime.tokenizer

import com.google.gson.JsonPrimitive
import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.PromptException
import dev.pocketvlm.runtime.UsageException
import org.junit.jupiter.api.Timeout
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.MethodSource
import java.io.File
import java.io.RandomAccessFile
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse

/** Files from strangers: whatever is wrong with them is a BundleException that names the file. */
@Timeout(60)
class MalformedTokenizerTest {
    @TempDir
    lateinit var folder: File

    private val file get() = File(folder, "tokenizer.json")

    /** @property says a part of the message. */
    data class Case(val json: String, val says: String) {
        override fun toString(): String = "$says: ${json.take(60)}"
    }

    @ParameterizedTest
    @MethodSource("cases")
    fun `a broken file is refused with what is wrong`(case: Case) {
        file.writeText(case.json)
        val error = assertFailsWith<BundleException> { Tokenizer.open(file, "the file") }
        assertContains(error.problem, "the file is no valid tokenizer.json: ")
        assertContains(error.problem, case.says)
        assertFalse('\n' in error.problem)
    }

    @Test
    fun `a file that ends at any place is refused`() {
        for (name in listOf("llama2", "xlmr", "gpt2", "bert")) {
            val bytes = Fixtures.file(name).readText().trimEnd().encodeToByteArray()
            for (length in 0 until bytes.size step bytes.size / 40) {
                file.writeBytes(bytes.copyOf(length))
                assertFailsWith<BundleException>("$name $length") { Tokenizer.open(file) }
            }
        }
    }

    @Test
    fun `a file that is not UTF-8 is refused`() {
        file.writeBytes(model("""{"type": "WordLevel", "unk_token": "a", "vocab": {"a?": 0}}""").encodeToByteArray().map { if (it == '?'.code.toByte()) 0xFF.toByte() else it }.toByteArray())
        assertContains(assertFailsWith<BundleException> { Tokenizer.open(file) }.problem, "no valid tokenizer.json")
    }

    @Test
    fun `a missing and a too large file`() {
        assertContains(assertFailsWith<BundleException> { Tokenizer.open(file) }.problem, "cannot read")
        assertContains(assertFailsWith<BundleException> { Tokenizer.open(folder) }.problem, "cannot read")
        RandomAccessFile(file, "rw").use { it.setLength(Tokenizer.MAX_BYTES + 1) }
        assertContains(assertFailsWith<BundleException> { Tokenizer.open(file) }.problem, "at most")
    }

    @Test
    fun `a vocabulary before the type and merges before the vocabulary are no fault`() {
        val plain = """{"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}"""
        val turned = """{"merges": [["a", "b"]], "vocab": {"ab": 2, "b": 1, "a": 0}, "unk_token": null, "type": "BPE"}"""
        for (json in listOf(plain, turned)) assertContentEquals(intArrayOf(2, 0), open(model(json)).encode("aba", special = true))
    }

    @ParameterizedTest
    @MethodSource("runaways")
    fun `a pattern that runs away fails and does not hang`(pattern: String) {
        val tokenizer = open(split(pattern))
        val error = assertFailsWith<BundleException> { tokenizer.encode("a".repeat(5_000) + "!", special = true) }
        assertContains(error.problem, "tokenizer.json fails on this text")
    }

    @Test
    fun `long words, long runs and deep patterns need no more stack or time than short ones`() {
        val texts = listOf("a".repeat(200_000), " ".repeat(200_000), "ab ".repeat(70_000), "\u0301".repeat(50_000), "漢".repeat(50_000))
        for (name in listOf("gpt2", "llama3", "qwen", "gpt4o", "deepseek", "llama2", "gemma", "xlmr", "unigram", "bert", "clip")) {
            val tokenizer = Fixtures.tokenizer(name)
            // As many bytes come back as went in, where nothing is normalized.
            for (text in texts) {
                val decoded = tokenizer.decode(tokenizer.encode(text, special = true))
                if (name in setOf("gpt2", "llama3", "gpt4o", "gemma")) assertEquals(text, decoded, name)
            }
        }
    }

    @Test
    fun `what the tokenizer cannot do with a text is an error of the bundle`() {
        val words = open(model("""{"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"a": 0}}"""))
        assertContentEquals(intArrayOf(0), words.encode("a", special = true))
        assertContains(assertFailsWith<BundleException> { words.encode("b", special = true) }.problem, "the unknown token '[UNK]'")
        val unigram = open(model("""{"type": "Unigram", "unk_id": null, "vocab": [["a", -1.0]]}"""))
        assertContains(assertFailsWith<BundleException> { unigram.encode("b", special = true) }.problem, "there is no token for it")
        val bytes = byteArrayOf(4, 0, 0, 0, 0, -4, -1, 127)
        val charsmap = java.util.Base64.getEncoder().encodeToString(bytes)
        val broken = open(model(BPE, normalizer = """{"type": "Precompiled", "precompiled_charsmap": "$charsmap"}"""))
        assertContains(assertFailsWith<BundleException> { broken.encode("a", special = true) }.problem, "points outside of itself")
    }

    @Test
    fun `half of a surrogate pair and tokens that there are not`() {
        val tokenizer = Fixtures.tokenizer("gpt2")
        for (text in listOf("a\ud83c", "\udf89", "\udf89\ud83c")) {
            assertContains(assertFailsWith<PromptException> { tokenizer.encode(text, special = false) }.problem, "not valid Unicode")
        }
        val halves = listOf(Stretch("\ud83c", true), Stretch("\udf89", true))
        assertFailsWith<PromptException> { tokenizer.encodeMixed(halves, emptySet()) }
        assertFailsWith<UsageException> { tokenizer.encodeMixed(listOf(Stretch("a", true)), setOf("<no such token>")) }
        assertEquals(null, tokenizer.tokenId("<no such token>"))
        assertEquals("", tokenizer.decode(intArrayOf(-1, 99_999_999)))
    }

    private fun open(json: String): Tokenizer = Tokenizer.open(file.apply { writeText(json) })

    companion object {
        private const val BPE = """{"type": "BPE", "vocab": {"a": 0}, "merges": []}"""

        private fun model(model: String, added: String = "[]", normalizer: String = "null", rest: String = ""): String =
            """{"version": "1.0", "added_tokens": $added, "normalizer": $normalizer, $rest "model": $model}"""

        private fun split(pattern: String): String = model(
            BPE,
            rest = """"pre_tokenizer": {"type": "Split", "pattern": {"Regex": ${JsonPrimitive(pattern)}}, "behavior": "Isolated", "invert": false},""",
        )

        private fun component(kind: String, json: String): String = model(BPE, rest = "\"$kind\": $json,")

        private fun token(content: String, more: String = ""): String =
            """{"id": 0, "content": $content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true$more}"""

        @JvmStatic
        fun runaways(): List<String> = listOf("(?:a|aa)+$", "(?:a*){3}b", "(?:a+)+?b", "(a?){20}a{20}c", "(?=(?:a|a)*b)", "(?<=a{0,200}b)", "(?:(?:a|b)*)*c")

        @JvmStatic
        fun cases(): List<Case> = json() + models() + components() + patterns()

        private fun json(): List<Case> = listOf(
            Case("", "End of input"), Case("{}", "it has no model"), Case("null", "it is not an object"), Case("[]", "it is not an object"),
            Case("[".repeat(100_000), "it is not an object"), Case("{\"a\":" + "[".repeat(100_000), "Nesting limit"),
            Case("""{"normalizer": """ + """{"a":""".repeat(100_000), "Nesting limit"), Case(model(BPE) + "x", "malformed"), Case(model(BPE) + "{}", "malformed"),
            Case("{'version': '1.0'}", "malformed"), Case("""{"version": 1.0}""", "$.version is not a text"), Case("""{"version": "2.0"}""", "its version is not 1.0"),
            Case("""{"model": null}""", "model is not an object"), Case("""{"model": []}""", "model is not an object"), Case("""{"added_tokens": null}""", "added_tokens is not a list"),
            Case(model(BPE, added = "[1]"), "added_tokens[0] is not an object"), Case(model(BPE, added = "[${token("5")}]"), "added_tokens[0].content is not a text"),
            Case(model(BPE, added = "[{}]"), "added_tokens[0].id is not an integer"), Case(model(BPE, added = """[{"id": -1}]"""), "added_tokens[0].id is not an integer"),
            Case(model(BPE, added = """[{"id": 1.5}]"""), "added_tokens[0].id"), Case(model(BPE, added = "[${token("\"\\ud83c\"")}]"), "not valid Unicode"),
            Case(model(BPE, added = "[${token("\"" + "x".repeat(5_000) + "\"")}]"), "longer than"),
            Case(model(BPE, added = "[${token("\" \"").replace("\"normalized\": false", "\"normalized\": true")}]", normalizer = """{"type": "Strip", "strip_left": true, "strip_right": true}"""), "empty in its normal form"),
        )

        private fun models(): List<Case> = listOf(
            Case(model("{}"), "model.vocab is missing"), Case(model("""{"type": "Nothing", "vocab": {}}"""), "the model 'Nothing' is not supported"),
            Case(model("""{"type": 5, "vocab": {}}"""), "model.type is not a text"), Case(model("""{"type": "BPE", "vocab": {}}"""), "model.merges is missing"),
            Case(model("""{"type": "BPE", "vocab": 5, "merges": []}"""), "neither an object nor a list"), Case(model("""{"type": "BPE", "vocab": [["a", 0]], "merges": []}"""), "not that of a BPE model"),
            Case(model("""{"type": "BPE", "vocab": {"a": "0"}, "merges": []}"""), "is no number"), Case(model("""{"type": "BPE", "vocab": {"a": null}, "merges": []}"""), "is no number"),
            Case(model("""{"type": "BPE", "vocab": {"a": 1.5}, "merges": []}"""), "1.5"), Case(model("""{"type": "BPE", "vocab": {"a": -1}, "merges": []}"""), "the id -1"),
            Case(model("""{"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}"""), "4000000000"), Case(model("""{"type": "BPE", "vocab": {"a": 2000000000}, "merges": []}"""), "the id 2000000000"),
            Case(model("""{"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}"""), "two tokens have the id 0"), Case(model("""{"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}"""), "is there twice"),
            Case(model("""{"type": "BPE", "vocab": {"\ud83c": 0}, "merges": []}"""), "not valid Unicode"), Case(model("""{"vocab": {}, "vocab": {}}"""), "twice"),
            Case(model("""{"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}"""), "names a token that there is not"), Case(model("""{"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}"""), "names the token 'b'"),
            Case(model("""{"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]}"""), "merge into what is no token"), Case(model("""{"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}"""), "is not two tokens"),
            Case(model("""{"type": "BPE", "vocab": {"a": 0}, "merges": ["a a a"]}"""), "is not two tokens"), Case(model("""{"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}"""), "is not a text"),
            Case(model("""{"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a", "a"]]}"""), "END_ARRAY"), Case(model("""{"type": "BPE", "vocab": {"a": 0}, "merges": {}}"""), "model.merges is not a list"),
            Case(model("""{"type": "BPE", "vocab": {"a": 0, "aa": 1}, "merges": ["a a", ["a", "a"]]}"""), "two forms"), Case(model("""{"type": "BPE", "vocab": {"a": 0}, "merges": [5]}"""), "is not a text"),
            Case(model("""{"type": "BPE", "continuing_subword_prefix": "##", "vocab": {"a": 0, "aa": 1}, "merges": ["a a"]}"""), "lacks the prefix"),
            Case(model("""{"type": "BPE", "dropout": 0.1, "vocab": {}, "merges": []}"""), "model.dropout is not supported"), Case(model("""{"type": "BPE", "fuse_unk": 1, "vocab": {}, "merges": []}"""), "model.fuse_unk is not true or false"),
            Case(model("""{"type": "BPE", "unk_token": 5, "vocab": {}, "merges": []}"""), "model.unk_token is not a text"), Case(model("""{"type": "Unigram", "unk_id": 5, "vocab": []}"""), "model.unk_id is larger"),
            Case(model("""{"type": "Unigram", "unk_id": 0, "vocab": []}"""), "model.unk_id is larger"), Case(model("""{"type": "Unigram", "unk_id": -1, "vocab": [["a", 0]]}"""), "model.unk_id is not an integer"),
            Case(model("""{"type": "Unigram", "vocab": [["a"]]}"""), "score of token 0 is no number"), Case(model("""{"type": "Unigram", "vocab": [["a", "b"]]}"""), "score of token 0 is no number"),
            Case(model("""{"type": "Unigram", "vocab": [["a", 1e999]]}"""), "NaN and infinities"), Case(model("""{"type": "Unigram", "vocab": ["a"]}"""), "BEGIN_ARRAY"), Case(model("""{"type": "Unigram", "vocab": {"a": 0}}"""), "not that of a Unigram model"),
            Case(model("""{"type": "WordPiece", "vocab": {}}"""), "model.unk_token is not a text"), Case(model("""{"type": "WordLevel", "vocab": {}}"""), "model.unk_token is not a text"),
            Case(model("""{"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "#", "max_input_chars_per_word": -1, "vocab": {}}"""), "max_input_chars_per_word"),
        )

        private fun components(): List<Case> = listOf(
            Case(component("normalizer", "5"), "normalizer is not an object"), Case(component("normalizer", "{}"), "normalizer.type is not a text"), Case(component("normalizer", """{"type": "Rot13"}"""), "the normalizer 'Rot13' is not supported"),
            Case(component("pre_tokenizer", """{"type": "Rot13"}"""), "the pre-tokenizer 'Rot13' is not supported"), Case(component("post_processor", """{"type": "Rot13"}"""), "the post-processor 'Rot13' is not supported"),
            Case(component("decoder", """{"type": "CTC"}"""), "the decoder 'CTC' is not supported"), Case(component("normalizer", """{"type": "Sequence", "normalizers": 5}"""), "normalizer.normalizers is not a list"),
            Case(component("normalizer", """{"type": "Sequence", "normalizers": [5]}"""), "normalizer.normalizers[0] is not an object"), Case(component("normalizer", """{"type": "Replace", "content": ""}"""), "normalizer.pattern is not an object"),
            Case(component("normalizer", """{"type": "Replace", "pattern": {"String": 5}, "content": ""}"""), "normalizer.pattern.String"), Case(component("normalizer", """{"type": "Replace", "pattern": {"Glob": "a"}, "content": ""}"""), "a String or a Regex"),
            Case(component("normalizer", """{"type": "Strip", "strip_left": 1}"""), "normalizer.strip_left is not true or false"), Case(component("normalizer", """{"type": "Precompiled", "precompiled_charsmap": "!"}"""), "not base64"),
            Case(component("normalizer", """{"type": "Precompiled", "precompiled_charsmap": ""}"""), "too short"), Case(component("normalizer", """{"type": "Precompiled", "precompiled_charsmap": "/////w=="}"""), "does not fit"),
            Case(component("normalizer", """{"type": "Precompiled", "precompiled_charsmap": "AAEAAAAA"}"""), "does not fit"), Case(component("normalizer", """{"type": "Precompiled", "precompiled_charsmap": "AAAAAP8="}"""), "not UTF-8"),
            Case(component("pre_tokenizer", """{"type": "Metaspace", "replacement": "ab"}"""), "pre_tokenizer.replacement is not one character"), Case(component("pre_tokenizer", """{"type": "Metaspace", "replacement": "a", "prepend_scheme": "often"}"""), "always, first or never"),
            Case(component("pre_tokenizer", """{"type": "Metaspace", "replacement": "a", "prepend_scheme": "first", "add_prefix_space": false}"""), "what prepend_scheme says"),
            Case(component("pre_tokenizer", """{"type": "Split", "pattern": {"String": "a"}, "behavior": "Sideways", "invert": false}"""), "one of the ways to split"), Case(component("pre_tokenizer", """{"type": "FixedLength", "length": 0}"""), "positive"),
            Case(component("post_processor", """{"type": "BertProcessing", "sep": ["a"], "cls": ["b", 1]}"""), "a token and its id"), Case(component("post_processor", """{"type": "TemplateProcessing", "single": [{"Sequence": {"id": "C"}}], "pair": [], "special_tokens": {}}"""), "a part of a template"),
            Case(component("post_processor", """{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}], "pair": [], "special_tokens": {}}"""), "is not an object"),
        )

        private fun patterns(): List<Case> = listOf(
            "(" to "parenthesis", "a)" to "a parenthesis too many", "[a" to "bracket that is not closed", "*" to "repeats nothing", "\\p{Nothing}" to "\\p{Nothing} is not supported", "(a)\\1" to "the escape \\1",
            "\\X" to "the escape \\X", "\\Ka" to "the escape \\K", "(?<n>a)" to "kind of group", "(?x) a" to "kind of group", "(?~a)" to "kind of group", "(?(1)a|b)" to "kind of group", "(?i:ss)" to "letters that others stand for", "(?i:ß)" to "stands for several",
            "a{5000}" to "repeats more than", "(?:a{1000}){1000}b{1,1000}" to "", "(?<=a*)b" to "looks behind without a limit", "(".repeat(200) + ")".repeat(200) to "nested too deeply", "[".repeat(200) to "nested too deeply", "a".repeat(30_000) to "longer than",
            "\\x{110000}" to "no character", "\\x{d800}" to "no character", "\\x80" to "a byte", "[[:nothing:]]" to "[:nothing:] is not supported", "[a-\\d]" to "ends in a class", "[b-a]" to "end comes before", "(?:(?:(?:a|b){1000}){1000}){1000}" to "is too large",
        ).filter { it.second.isNotEmpty() }.map { (pattern, says) -> Case(split(pattern), says) }
    }
}
