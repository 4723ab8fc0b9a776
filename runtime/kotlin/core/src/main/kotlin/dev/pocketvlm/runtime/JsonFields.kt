package dev.pocketvlm.runtime

import com.google.gson.JsonElement
import com.google.gson.JsonNull
import com.google.gson.JsonObject
import com.google.gson.JsonParseException
import com.google.gson.JsonParser
import com.google.gson.JsonPrimitive
import com.google.gson.Strictness
import com.google.gson.stream.JsonReader
import com.google.gson.stream.JsonToken
import java.io.IOException
import java.io.StringReader

/**
 * The fields of one JSON object, read strictly: a missing key, a key that nobody asked for and a value of another type are
 * a [BundleException] that names the place.
 *
 * @property where path of the object, for messages: "manifest.json.tiling".
 */
internal class JsonFields(element: JsonElement, private val where: String, private val ignoreUnknown: Boolean) {
    private val fields: JsonObject = element as? JsonObject ?: throw wrong(where, "an object", element)
    private val asked = mutableSetOf<String>()

    /** Reads the value under [key], or gives [default] where the key is absent. */
    fun <T> optional(key: String, default: T, read: (JsonElement, String) -> T): T {
        asked += key
        val found = fields[key] ?: return default
        return read(found, "$where.$key")
    }

    fun <T> required(key: String, read: (JsonElement, String) -> T): T {
        asked += key
        val found = fields[key] ?: throw BundleException("$where: '$key' is missing, and must be there")
        return read(found, "$where.$key")
    }

    fun text(key: String): String = required(key, ::readText)

    fun int(key: String): Int = required(key, ::readInt)

    fun flag(key: String): Boolean = required(key, ::readFlag)

    /** Another object, whose fields [read] takes. */
    fun <T> nested(key: String, read: (JsonFields) -> T): T = required(key) { value, place -> objectAt(value, place, read) }

    /** Whatever object stands there: it is of no fixed form. */
    fun anyObject(key: String) {
        required(key) { value, place -> value as? JsonObject ?: throw wrong(place, "an object", value) }
    }

    fun <T> objectAt(value: JsonElement, place: String, read: (JsonFields) -> T): T {
        val inner = JsonFields(value, place, ignoreUnknown)
        return read(inner).also { inner.refuseUnknown() }
    }

    /** To be called when everything has been asked for. */
    fun refuseUnknown() {
        if (ignoreUnknown) return
        val unknown = fields.keySet().firstOrNull { it !in asked } ?: return
        throw BundleException("$where: unknown key '${shorten(unknown)}'", "known: ${asked.joinToString()}")
    }
}

/**
 * Parses strict JSON.
 *
 * @throws BundleException it is none; [name] stands for it in the message.
 */
internal fun parseJson(text: String, name: String): JsonElement {
    try {
        val reader = JsonReader(StringReader(text))
        reader.strictness = Strictness.STRICT
        val parsed = JsonParser.parseReader(reader)
        if (reader.peek() != JsonToken.END_DOCUMENT) throw BundleException("$name is not valid JSON: text after its end")
        return parsed
    } catch (error: JsonParseException) {
        throw notJson(name, error)
    } catch (error: IOException) {
        throw notJson(name, error)
    }
}

private fun notJson(name: String, error: Exception): BundleException {
    val reason = (error.cause ?: error).message.orEmpty().lineSequence().first()
    return BundleException("$name is not valid JSON: $reason", "copy the bundle again or export it again", error)
}

internal fun readText(value: JsonElement, where: String): String =
    (value as? JsonPrimitive)?.takeIf { it.isString }?.asString ?: throw wrong(where, "a text", value)

internal fun readFlag(value: JsonElement, where: String): Boolean =
    (value as? JsonPrimitive)?.takeIf { it.isBoolean }?.asBoolean ?: throw wrong(where, "true or false", value)

internal fun readInt(value: JsonElement, where: String): Int {
    val number = readLong(value, where)
    if (number !in Int.MIN_VALUE..Int.MAX_VALUE) throw BundleException("$where: $number is too large")
    return number.toInt()
}

internal fun readLong(value: JsonElement, where: String): Long {
    val text = numberText(value)?.takeIf { it.matches(INTEGER) } ?: throw wrong(where, "a whole number", value)
    return text.toLongOrNull() ?: throw BundleException("$where: ${shorten(text)} is too large")
}

internal fun readDouble(value: JsonElement, where: String): Double {
    val number = numberText(value)?.toDoubleOrNull() ?: throw wrong(where, "a number", value)
    if (!number.isFinite()) throw BundleException("$where: ${shorten(value.toString())} is not a finite number")
    return number
}

internal fun <T> readList(read: (JsonElement, String) -> T): (JsonElement, String) -> List<T> = { value, where ->
    if (!value.isJsonArray) throw wrong(where, "a list", value)
    value.asJsonArray.mapIndexed { index, item -> read(item, "$where[$index]") }
}

internal fun <T> readListOf(size: Int, read: (JsonElement, String) -> T): (JsonElement, String) -> List<T> = { value, where ->
    readList(read)(value, where).also {
        if (it.size != size) throw BundleException("$where: expected $size values, found ${it.size}")
    }
}

internal fun <T> readMap(read: (JsonElement, String) -> T): (JsonElement, String) -> Map<String, T> = { value, where ->
    if (!value.isJsonObject) throw wrong(where, "an object", value)
    value.asJsonObject.entrySet().associate { (key, item) -> key to read(item, "$where.$key") }
}

/** One of the constants of an enumeration, written in lower case. */
internal inline fun <reified T : Enum<T>> readChoice(value: JsonElement, where: String): T {
    val text = readText(value, where)
    return enumValues<T>().firstOrNull { it.name.lowercase() == text }
        ?: throw BundleException("$where: '${shorten(text)}' is none of ${enumValues<T>().joinToString { it.name.lowercase() }}")
}

internal fun wrong(where: String, expected: String, found: JsonElement): BundleException {
    val shown = if (found is JsonNull) "null" else shorten(found.toString())
    return BundleException("$where: expected $expected, found $shown")
}

internal fun shorten(text: String): String = if (text.length <= SHOWN) text else text.take(SHOWN - 3) + "..."

private fun numberText(value: JsonElement): String? = (value as? JsonPrimitive)?.takeIf { it.isNumber }?.asString

private val INTEGER = Regex("-?[0-9]+")
private const val SHOWN = 60
