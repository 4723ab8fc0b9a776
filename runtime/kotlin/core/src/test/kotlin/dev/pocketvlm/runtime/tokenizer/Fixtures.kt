package dev.pocketvlm.runtime.tokenizer

import com.google.gson.JsonArray
import com.google.gson.JsonElement
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.PromptException
import java.io.File
import java.util.zip.GZIPInputStream
import kotlin.test.assertEquals

/** tests/fixtures/tokenizers: tokenizers, and what the Python runtime makes of texts with them. */
object Fixtures {
    private val root: File = generateSequence(File("").absoluteFile) { it.parentFile }.first { File(it, "tests/fixtures/tokenizers").isDirectory }
    private val folder = File(root, "tests/fixtures/tokenizers")

    private val vectors: JsonObject by lazy {
        GZIPInputStream(File(folder, "vectors.json.gz").inputStream()).reader().use { JsonParser.parseReader(it).asJsonObject }
    }

    val texts: List<String> by lazy { vectors["texts"].strings() }

    val stopStrings: List<JsonObject> by lazy { vectors["stop_strings"].objects() }

    /** Cases of added tokens, each of which makes a tokenizer of `byteModel`. */
    val addedTokens: List<JsonObject> by lazy { vectors["added_tokens"].objects() }

    val byteModel: JsonObject by lazy { vectors["byte_model"].asJsonObject }

    val names: List<String> by lazy { vectors["tokenizers"].asJsonObject.keySet().toList() }

    fun expected(name: String): JsonObject = vectors["tokenizers"].asJsonObject[name].asJsonObject

    fun file(name: String): File = if (name == "demo") File(root, "demo/model/tokenizer.json") else File(folder, "$name.json")

    private val tokenizers = mutableMapOf<String, Tokenizer>()

    fun tokenizer(name: String): Tokenizer = tokenizers.getOrPut(name) { Tokenizer.open(file(name)) }
}

/** The ids, or an error where Python has one. */
fun assertSameIds(wanted: JsonElement, message: String, action: () -> IntArray) {
    val found: Any = try {
        action().toList()
    } catch (error: PromptException) {
        "PromptError"
    } catch (error: BundleException) {
        "BundleError"
    }
    assertEquals(if (wanted.isJsonArray) wanted.ints() else wanted.asString, found, message)
}

fun JsonElement.objects(): List<JsonObject> = asJsonArray.map { it.asJsonObject }

fun JsonElement.strings(): List<String> = asJsonArray.map { it.asString }

fun JsonElement.ints(): List<Int> = (this as JsonArray).map { it.asInt }
