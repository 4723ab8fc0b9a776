package dev.pocketvlm.runtime.tokenizer

import com.google.gson.stream.JsonReader
import com.google.gson.stream.JsonToken

/**
 * The fields of a small JSON object of tokenizer.json. What is not of the expected kind is a [MalformedTokenizer] that says
 * where.
 *
 * @property path where the object stands.
 */
internal class Fields(val path: String, private val values: Map<String, Any?>) {
    operator fun contains(name: String): Boolean = values[name] != null

    fun string(name: String): String = values[name] as? String ?: fail(name, "a text")

    fun boolean(name: String): Boolean = values[name] as? Boolean ?: fail(name, "true or false")

    fun boolean(name: String, default: Boolean): Boolean = if (name in this) boolean(name) else default

    /** An integer that is not negative. */
    fun integer(name: String): Int = toInteger(values[name]) ?: fail(name, "an integer that is not negative")

    /** A text of one character. */
    fun character(name: String): String =
        string(name).takeIf { it.isNotEmpty() && it.codePointCount(0, it.length) == 1 } ?: fail(name, "one character")

    fun fields(name: String): Fields = toFields(values[name], "$path.$name")

    fun list(name: String): List<Any?> = values[name] as? List<*> ?: fail(name, "a list")

    fun fieldsList(name: String): List<Fields> = list(name).mapIndexed { index, value -> toFields(value, "$path.$name[$index]") }

    fun strings(name: String): List<String> = list(name).map { it as? String ?: fail(name, "a list of texts") }

    fun integers(name: String): List<Int> = list(name).map { toInteger(it) ?: fail(name, "a list of integers") }

    /** The only field: its name and itself. */
    fun only(): Pair<String, Any?> =
        values.entries.singleOrNull()?.toPair() ?: throw MalformedTokenizer("$path does not have exactly one field")

    fun fail(name: String, wanted: String): Nothing = throw MalformedTokenizer("$path.$name is not $wanted")

    companion object {
        fun toFields(value: Any?, path: String): Fields {
            if (value !is Map<*, *>) throw MalformedTokenizer("$path is not an object")
            return Fields(path, value.entries.associate { (key, field) -> key as String to field })
        }

        private fun toInteger(value: Any?): Int? = (value as? JsonNumber)?.text?.toIntOrNull()?.takeIf { it >= 0 }
    }
}

/** A number as it is written. */
internal class JsonNumber(val text: String)

/** A value as a tree: maps, lists, texts, booleans and numbers. For the small parts of a file; how many nodes is limited. */
internal class JsonTree(private val reader: JsonReader) {
    private var nodes = 0

    fun read(): Any? {
        if (++nodes > MOST_NODES) throw MalformedTokenizer("${reader.path.take(MOST_SHOWN)} is too large")
        return when (reader.peek()) {
            JsonToken.BEGIN_OBJECT -> buildMap {
                reader.beginObject()
                while (reader.hasNext()) put(reader.nextName(), read())
                reader.endObject()
            }
            JsonToken.BEGIN_ARRAY -> buildList {
                reader.beginArray()
                while (reader.hasNext()) add(read())
                reader.endArray()
            }
            JsonToken.STRING -> reader.nextWellFormed()
            JsonToken.NUMBER -> JsonNumber(reader.nextString())
            JsonToken.BOOLEAN -> reader.nextBoolean()
            else -> {
                reader.nextNull()
                null
            }
        }
    }

    private companion object {
        const val MOST_NODES = 1_000_000
        const val MOST_SHOWN = 80
    }
}

/** A text, which must be one, and valid Unicode. */
internal fun JsonReader.nextWellFormed(): String {
    if (peek() != JsonToken.STRING) throw MalformedTokenizer("${path.take(80)} is not a text")
    val text = nextString()
    if (!text.isWellFormed()) throw MalformedTokenizer("${path.take(80)} is not valid Unicode")
    return text
}
