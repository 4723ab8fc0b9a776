package dev.pocketvlm.runtime

import com.google.gson.JsonArray
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import java.io.File

/** Files of tests/fixtures, which Python wrote: the two runtimes must agree on them. */
internal object Fixtures {
    private val folder: File = generateSequence(File(System.getProperty("user.dir")).absoluteFile) { it.parentFile }
        .map { it.resolve("tests/fixtures") }
        .first { it.isDirectory }

    fun file(name: String): File = folder.resolve(name)

    fun json(name: String): JsonObject = file(name).reader().use { JsonParser.parseReader(it).asJsonObject }
}

internal fun JsonArray.ints(): IntArray = IntArray(size()) { this[it].asInt }

internal fun JsonObject.objects(name: String): List<JsonObject> = getAsJsonArray(name).map { it.asJsonObject }

/** The constant that a manifest spells in lower case. */
internal inline fun <reified T : Enum<T>> JsonObject.enum(name: String): T = enumValueOf(get(name).asString.uppercase())
