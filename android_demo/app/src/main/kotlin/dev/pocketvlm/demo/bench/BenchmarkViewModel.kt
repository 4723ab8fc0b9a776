package dev.pocketvlm.demo.bench

import android.content.ContentResolver
import android.net.Uri
import com.google.gson.GsonBuilder
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import dev.pocketvlm.bench.Benchmark
import dev.pocketvlm.bench.BenchmarkReport
import dev.pocketvlm.bench.BenchmarkSettings
import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.ProblemException
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.ViewModel
import dev.pocketvlm.demo.device.Device
import dev.pocketvlm.demo.images.Picture
import dev.pocketvlm.demo.images.PictureReader
import dev.pocketvlm.demo.reporting
import dev.pocketvlm.demo.session.SessionHolder
import dev.pocketvlm.demo.session.SessionState
import dev.pocketvlm.runtime.VlmSession
import dev.pocketvlm.runtime.image.ImageCodec
import dev.pocketvlm.runtime.image.ImageSource
import java.io.FileNotFoundException
import java.io.IOException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/** Where a measurement is. */
sealed interface Measurement {
    data object Idle : Measurement

    /** @property next what is run now, in the benchmark's words. */
    data class Running(val next: String, val done: Int, val total: Int) : Measurement

    /** @property json the object of `pocketvlm bench --json`, with the device. */
    data class Done(val report: BenchmarkReport, val json: String) : Measurement
}

/** Everything that the benchmark screen shows. */
data class BenchmarkState(
    val session: SessionState = SessionState.None,
    val picture: Picture? = null,
    val measurement: Measurement = Measurement.Idle,
    val problem: Problem? = null,
)

/** Measures the model in memory. */
class BenchmarkViewModel(
    private val sessions: SessionHolder,
    private val codec: ImageCodec,
    private val reader: PictureReader,
    private val device: Device,
) : ViewModel() {
    private val states = MutableStateFlow(BenchmarkState(session = sessions.state.value))
    private var run: Job? = null

    val state: StateFlow<BenchmarkState> = states.asStateFlow()

    init {
        scope.launch { sessions.state.collect { session -> states.update { it.copy(session = session) } } }
    }

    /** Measures with this picture from now on. */
    fun choose(uri: Uri) {
        scope.launch {
            reporting(::report) {
                val picture = reader.read(uri)
                states.update { it.copy(picture = picture) }
            }
        }
    }

    /** Measures text alone from now on. */
    fun clearPicture() = states.update { it.copy(picture = null) }

    /** Begins, unless a measurement runs or there is no session. */
    fun start(settings: BenchmarkSettings) {
        if (states.value.session !is SessionState.Ready || run?.isActive == true) return
        dismissProblem()
        run = scope.launch {
            // The benchmark makes the same prompts and pictures every time: an earlier run's would be in the session's caches.
            val session = sessions.fresh() ?: return@launch
            reporting(::fail) { measure(session, settings.copy(image = states.value.picture?.name)) }
        }
    }

    /** Gives up. */
    fun stop() {
        run?.cancel()
        states.update { it.copy(measurement = Measurement.Idle) }
    }

    /** Writes the JSON of the latest measurement to a document that the user chose. */
    fun save(resolver: ContentResolver, target: Uri) {
        val done = states.value.measurement as? Measurement.Done ?: return
        scope.launch {
            reporting(::report) { withContext(Dispatchers.IO) { write(resolver, target, done.json) } }
        }
    }

    fun report(problem: Problem) = states.update { it.copy(problem = problem) }

    fun dismissProblem() = states.update { it.copy(problem = null) }

    private fun fail(problem: Problem) = states.update { it.copy(measurement = Measurement.Idle, problem = problem) }

    private fun write(resolver: ContentResolver, target: Uri, text: String) {
        try {
            (resolver.openOutputStream(target, "wt") ?: throw FileNotFoundException("$target")).use { it.write(text.toByteArray()) }
        } catch (error: IOException) {
            throw ProblemException(Problem.Known(R.string.save_failed, R.string.save_failed_hint), error)
        }
    }

    private suspend fun measure(session: VlmSession, settings: BenchmarkSettings) {
        val source = states.value.picture?.let { ImageSource.Bytes(it.bytes) }
        // One look for the prompt's length, then each case once to warm up and as often as asked.
        val total = 1 + (settings.repetitions + 1) * (if (source == null) 1 else 2)
        var done = 0
        val benchmark = Benchmark(session, codec, settings) { next ->
            val running = Measurement.Running(next, done++, total)
            states.update { it.copy(measurement = running) }
        }
        val finished = withContext(Dispatchers.Default) {
            val report = benchmark.run(source)
            Measurement.Done(report, withDevice(report.toJson(), device.facts()))
        }
        states.update { it.copy(measurement = finished) }
    }
}

/** The report with one more key, "device". */
internal fun withDevice(report: String, facts: Map<String, Any?>): String {
    val gson = GsonBuilder().serializeNulls().setPrettyPrinting().create()
    val root: JsonObject = JsonParser.parseString(report).asJsonObject
    root.add("device", gson.toJsonTree(facts))
    return gson.toJson(root)
}
