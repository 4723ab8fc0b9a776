package dev.pocketvlm.runtime.tokenizer

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer
import org.junit.jupiter.api.BeforeAll
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.MethodSource
import kotlin.random.Random
import kotlin.test.assertEquals

/** Random texts and tokens against Hugging Face's own library, which DJL brings as a native library. */
class LibraryOracleTest {
    @ParameterizedTest
    @MethodSource("names")
    fun `random texts become the same ids`(name: String) {
        val tokenizer = Fixtures.tokenizer(name)
        val texts = RandomTexts(seed = 1)
        library(name).use { library ->
            repeat(TEXTS) {
                val text = texts.next()
                assertEquals(library.encode(text, false, false).ids.ints(), tokenizer.encode(text, special = true).toList(), "$name '$text'")
                val added = tokenizer.encodeMixed(listOf(Stretch(text, true)), tokenizer.specialTokens, addSpecialTokens = true)
                assertEquals(library.encode(text, true, false).ids.ints(), added.toList(), "$name '$text'")
            }
        }
    }

    @ParameterizedTest
    @MethodSource("names")
    fun `random tokens become the same text`(name: String) {
        val tokenizer = Fixtures.tokenizer(name)
        val random = Random(2)
        library(name).use { library ->
            repeat(TEXTS) {
                val ids = List(random.nextInt(20)) { random.nextInt(tokenizer.largestTextId + 2) }.filter { tokenizer.hasOneForm(it) }
                val expected = library.decode(ids.map { it.toLong() }.toLongArray(), true)
                val decoded = tokenizer.decode(ids)
                // Damaged characters are counted in another way, see Tokenizer.decode.
                if (Utf8.REPLACEMENT !in expected) assertEquals(expected, decoded, "$name $ids")
                val stream = StreamDecoder(tokenizer)
                assertEquals(decoded, ids.joinToString("") { stream.push(it) } + stream.finish(), "$name $ids")
            }
        }
    }

    /** DJL's version of the library decodes an added token as it is, the newer one of the Python runtime in its normal form. */
    private fun Tokenizer.hasOneForm(id: Int): Boolean = pipeline.added.tokensById[id].let { it == null || it.content == pipeline.token(id) }

    private fun LongArray.ints(): List<Int> = map { it.toInt() }

    private fun library(name: String): HuggingFaceTokenizer = Fixtures.file(name).inputStream().use { Library.open(it) }

    companion object {
        private const val TEXTS = 400

        @JvmStatic
        @BeforeAll
        fun prepare() = Library.prepare()

        @JvmStatic
        fun names(): List<String> = Fixtures.names
    }
}
