package dev.pocketvlm.runtime.tokenizer

import com.google.gson.JsonElement
import com.google.gson.JsonObject
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.MethodSource
import kotlin.test.Test
import kotlin.test.assertEquals

/** Equality with the Python runtime, token for token. */
class TokenizerVectorsTest {
    @ParameterizedTest
    @MethodSource("names")
    fun `texts become the same ids`(name: String) {
        val tokenizer = Fixtures.tokenizer(name)
        val expected = Fixtures.expected(name)["texts"].objects()
        assertEquals(Fixtures.texts.size, expected.size)
        Fixtures.texts.zip(expected).forEach { (text, wanted) ->
            assertSameIds(wanted["plain"], "$name plain '$text'") { tokenizer.encode(text, special = false) }
            assertSameIds(wanted["special"], "$name special '$text'") { tokenizer.encode(text, special = true) }
            assertSameIds(wanted["added"], "$name added '$text'") {
                tokenizer.encodeMixed(listOf(Stretch(text, true)), tokenizer.specialTokens, addSpecialTokens = true)
            }
        }
    }

    @ParameterizedTest
    @MethodSource("names")
    fun `ids become the same text`(name: String) {
        val tokenizer = Fixtures.tokenizer(name)
        Fixtures.expected(name)["texts"].objects().filter { it["added"].isJsonArray }.forEach { wanted ->
            assertEquals(wanted["decoded"].asString, tokenizer.decode(wanted["added"].ints()), "$name ${wanted["added"]}")
        }
    }

    @ParameterizedTest
    @MethodSource("names")
    fun `ids that come one by one become the same pieces of text`(name: String) {
        val tokenizer = Fixtures.tokenizer(name)
        Fixtures.expected(name)["streams"].objects().forEach { wanted ->
            val ids = wanted["ids"].ints()
            val stream = StreamDecoder(tokenizer)
            assertEquals(wanted["pieces"].strings(), ids.map(stream::push) + stream.finish(), "$name $ids")
            assertEquals(wanted["decoded"].asString, tokenizer.decode(ids), "$name $ids")
        }
    }

    @ParameterizedTest
    @MethodSource("names")
    fun `trusted and untrusted text become the same ids`(name: String) {
        val tokenizer = Fixtures.tokenizer(name)
        Fixtures.expected(name)["mixed"].objects().forEach { wanted ->
            val stretches = wanted["stretches"].asJsonArray.map { Stretch(it.asJsonArray[0].asString, it.asJsonArray[1].asBoolean) }
            assertSameIds(wanted["ids"], "$name $wanted") {
                tokenizer.encodeMixed(stretches, wanted["control"].strings().toSet(), wanted["add"].asBoolean)
            }
        }
    }

    @ParameterizedTest
    @MethodSource("names")
    fun `a tokenizer says the same of itself`(name: String) {
        val tokenizer = Fixtures.tokenizer(name)
        val wanted = Fixtures.expected(name)
        assertEquals(idsByName(wanted["added"]), tokenizer.addedTokens)
        assertEquals(idsByName(wanted["special"]), tokenizer.addedTokens.filterKeys { it in tokenizer.specialTokens })
        assertEquals(idsByName(wanted["special"]).values.toSet(), tokenizer.specialIds)
        assertEquals(wanted["unknown_id"].takeUnless { it.isJsonNull }?.asInt, tokenizer.unknownId)
        assertEquals(wanted["largest_text_id"].asInt, tokenizer.largestTextId)
    }

    @Test
    fun `stop strings stop at the same place`() {
        Fixtures.stopStrings.forEach { wanted ->
            val machine = StopStrings(wanted["stops"].strings())
            val shown = wanted["pieces"].strings().map(machine::push)
            assertEquals(wanted["shown"].asJsonArray.map { StopStrings.Shown(it.asJsonArray[0].asString, it.asJsonArray[1].asBoolean) }, shown, "$wanted")
            assertEquals(wanted["rest"].asString, machine.finish(), "$wanted")
        }
    }

    private fun idsByName(json: JsonElement): Map<String, Int> = (json as JsonObject).entrySet().associate { (name, id) -> name to id.asInt }

    companion object {
        @JvmStatic
        fun names(): List<String> = Fixtures.names
    }
}
