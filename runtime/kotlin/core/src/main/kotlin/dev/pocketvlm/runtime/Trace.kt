package dev.pocketvlm.runtime

import com.google.gson.stream.JsonWriter
import java.io.File
import java.io.IOException
import java.io.StringWriter
import java.util.concurrent.ConcurrentHashMap
import java.util.concurrent.ConcurrentLinkedQueue
import java.util.concurrent.atomic.AtomicInteger

/**
 * What ran when, on which thread: Chrome trace JSON, which Perfetto (ui.perfetto.dev) opens. Collects spans from any thread.
 *
 * @param enabled false makes [span] do next to nothing.
 */
public class Trace(public val enabled: Boolean = true) {
    private val start = System.nanoTime()
    private val finished = ConcurrentLinkedQueue<TraceEvent>()
    private val threads = ConcurrentHashMap<String, Int>()
    private val rows = AtomicInteger(1)

    /** The finished spans so far. */
    public val events: List<TraceEvent> get() = finished.toList()

    /** Records how long [body] ran; [arguments] (texts and numbers) are shown with it. */
    public inline fun <T> span(name: String, vararg arguments: Pair<String, Any>, body: () -> T): T {
        if (!enabled) return body()
        val begin = System.nanoTime()
        try {
            return body()
        } finally {
            record(name, begin, System.nanoTime(), arguments.toMap())
        }
    }

    /** The trace in Chrome's object format, process and thread names included. */
    public fun toJson(): String {
        val text = StringWriter()
        JsonWriter(text).use { writer ->
            writer.beginObject().name("traceEvents").beginArray()
            writeName(writer, "process_name", 0, "pocketvlm")
            for ((name, row) in threads) writeName(writer, "thread_name", row, name)
            for (event in finished) writeEvent(writer, event)
            writer.endArray().name("displayTimeUnit").value("ms").endObject()
        }
        return text.toString()
    }

    /**
     * Writes the trace to [file].
     *
     * @throws EnvironmentException the file cannot be written.
     */
    public fun save(file: File) {
        try {
            file.writeText(toJson())
        } catch (error: IOException) {
            throw EnvironmentException(
                "${file.path}: the trace cannot be written: ${error.reason()}",
                "name a file in a folder that exists",
                error,
            )
        }
    }

    /** Of [span] alone. */
    @PublishedApi
    internal fun record(name: String, begin: Long, end: Long, arguments: Map<String, Any>) {
        // By name, not id: pools give the work of one name to threads that come and go.
        val row = threads.getOrPut(Thread.currentThread().name) { rows.getAndIncrement() }
        finished += TraceEvent(name, (begin - start) / 1000.0, (end - begin) / 1000.0, row, arguments)
    }

    private fun writeName(writer: JsonWriter, kind: String, row: Int, name: String) {
        writer.beginObject().name("name").value(kind).name("ph").value("M").name("pid").value(1L)
        writer.name("tid").value(row.toLong()).name("args").beginObject().name("name").value(name).endObject().endObject()
    }

    private fun writeEvent(writer: JsonWriter, event: TraceEvent) {
        writer.beginObject().name("name").value(event.name).name("ph").value("X")
        writer.name("ts").value(event.startMicros).name("dur").value(event.durationMicros)
        writer.name("pid").value(1L).name("tid").value(event.row.toLong()).name("args").beginObject()
        for ((key, value) in event.arguments) {
            writer.name(key)
            if (value is Number) writer.value(value) else writer.value(value.toString())
        }
        writer.endObject().endObject()
    }

    public companion object {
        /** Collects nothing. */
        public val OFF: Trace = Trace(enabled = false)
    }
}

/**
 * One span: when it began, in microseconds after the trace did, how long it took, and the row of its thread.
 */
public data class TraceEvent(
    val name: String,
    val startMicros: Double,
    val durationMicros: Double,
    val row: Int,
    val arguments: Map<String, Any>,
)
