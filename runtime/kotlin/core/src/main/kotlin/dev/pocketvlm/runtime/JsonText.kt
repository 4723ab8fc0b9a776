package dev.pocketvlm.runtime

import com.google.gson.stream.JsonWriter
import java.io.StringWriter

/** JSON text of maps with text keys, lists, texts, numbers, booleans and nulls. */
internal fun jsonText(value: Any?): String {
    val text = StringWriter()
    val writer = JsonWriter(text)
    writer.serializeNulls = true
    write(writer, value)
    writer.flush()
    return text.toString()
}

private fun write(writer: JsonWriter, value: Any?) {
    when (value) {
        null -> writer.nullValue()
        is Map<*, *> -> {
            writer.beginObject()
            for ((key, item) in value) {
                writer.name(key as String)
                write(writer, item)
            }
            writer.endObject()
        }
        is Iterable<*> -> {
            writer.beginArray()
            value.forEach { write(writer, it) }
            writer.endArray()
        }
        is Boolean -> writer.value(value)
        is Number -> writer.value(value)
        else -> writer.value(value.toString())
    }
}
