package dev.pocketvlm.runtime.tokenizer

import com.google.gson.JsonArray
import com.google.gson.JsonElement
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import java.io.File
import java.util.zip.GZIPInputStream

/** tests/fixtures/tokenizers: tokenizers, and what the Python runtime makes of texts with them. */
object Fixtures {
    private val root: File = generateSequence(File("").absoluteFile) { it.parentFile }.first { File(it, "tests/fixtures/tokenizers").isDirectory }
    private val folder = File(root, "tests/fixtures/tokenizers")

    private val vectors: JsonObject by lazy {
        GZIPInputStream(File(folder, "vectors.json.gz").inputStream()).reader().use { JsonParser.parseReader(it).asJsonObject }
    }

    val texts: List<String> by lazy { vectors["texts"].strings() }

    val stopStrings: List<JsonObject> by lazy { vectors["stop_strings"].objects() }

    val names: List<String> by lazy { vectors["tokenizers"].asJsonObject.keySet().toList() }

    fun expected(name: String): JsonObject = vectors["tokenizers"].asJsonObject[name].asJsonObject

    fun file(name: String): File = if (name == "demo") File(root, "demo/model/tokenizer.json") else File(folder, "$name.json")

    private val tokenizers = mutableMapOf<String, Tokenizer>()

    fun tokenizer(name: String): Tokenizer = tokenizers.getOrPut(name) { Tokenizer.open(file(name)) }
}

fun JsonElement.objects(): List<JsonObject> = asJsonArray.map { it.asJsonObject }

fun JsonElement.strings(): List<String> = asJsonArray.map { it.asString }

fun JsonElement.ints(): List<Int> = (this as JsonArray).map { it.asInt }
