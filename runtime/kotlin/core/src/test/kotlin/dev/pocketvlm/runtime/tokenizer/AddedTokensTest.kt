package dev.pocketvlm.runtime.tokenizer

import com.google.gson.JsonObject
import dev.pocketvlm.runtime.BundleException
import org.junit.jupiter.api.io.TempDir
import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

/** Added tokens with all kinds of flags, against the Python runtime. */
class AddedTokensTest {
    @TempDir
    lateinit var folder: File

    @Test
    fun `added tokens are found, numbered and guarded as in Python`() {
        assertEquals(150, Fixtures.addedTokens.size)
        Fixtures.addedTokens.forEach { case ->
            if (case["ids"].isJsonNull) {
                assertFailsWith<BundleException>("$case") { open(case) }
                return@forEach
            }
            val tokenizer = open(case)
            assertEquals(case["added"].asJsonObject.entrySet().associate { (token, id) -> token to id.asInt }, tokenizer.addedTokens, "$case")
            case["texts"].strings().forEachIndexed { index, text ->
                assertSameIds(case["ids"].asJsonArray[index], "'$text' $case") { tokenizer.encode(text, special = true) }
                assertSameIds(case["guarded"].asJsonArray[index], "guarded '$text' $case") { tokenizer.encode(text, special = false) }
            }
        }
    }

    private fun open(case: JsonObject): Tokenizer {
        val json = Fixtures.byteModel.deepCopy()
        for (field in listOf("normalizer", "added_tokens")) json.add(field, case[field])
        return Tokenizer.open(File(folder, "tokenizer.json").apply { writeText(json.toString()) })
    }
}
