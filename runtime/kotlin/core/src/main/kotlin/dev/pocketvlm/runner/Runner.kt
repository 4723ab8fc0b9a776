package dev.pocketvlm.runner

import dev.pocketvlm.bench.Benchmark
import dev.pocketvlm.bench.BenchmarkSettings
import dev.pocketvlm.runtime.EnvironmentException
import dev.pocketvlm.runtime.PocketVlmException
import dev.pocketvlm.runtime.SessionOptions
import dev.pocketvlm.runtime.UsageException
import dev.pocketvlm.runtime.VlmSession
import dev.pocketvlm.runtime.engine.Engines
import dev.pocketvlm.runtime.engine.Memory
import dev.pocketvlm.runtime.image.ImageCodec
import dev.pocketvlm.runtime.image.ImageSource
import dev.pocketvlm.runtime.jsonText
import dev.pocketvlm.runtime.reason
import java.io.File
import java.io.IOException
import kotlinx.coroutines.runBlocking

/**
 * The program that `pocketvlm bench --device` starts on a device, and that a desktop starts, too: docs/devices.md. It opens a
 * bundle, measures it or answers a list of questions, and writes JSON to a file.
 */
public class Runner(
    private val codec: ImageCodec,
    private val engines: Engines = Engines.standard(),
    private val memory: Memory = Memory.DIRECT,
) {
    /** Runs a command line; returns the exit code, which is that of the `pocketvlm` command for the same fault. */
    public fun run(arguments: Array<String>): Int = try {
        val given = Arguments.parse(arguments)
        runBlocking { work(given) }
        0
    } catch (error: PocketVlmException) {
        System.err.println("error: ${error.message}")
        tell(error.code, error.problem, error.hint)
        error.exitCode
    } catch (error: Throwable) {
        // Whoever started this on a phone has no other way to learn of it.
        error.printStackTrace()
        tell("bug", error.toString(), "report it, with what stands above")
        EXIT_BUG
    }

    private fun tell(code: String, message: String, hint: String) {
        println(jsonText(mapOf("error" to mapOf("code" to code, "message" to message, "hint" to hint))))
    }

    private suspend fun work(given: Arguments) {
        val options = SessionOptions(
            codec,
            target = given["target"],
            threads = given.number("threads"),
            engines = engines,
            memory = memory,
        )
        VlmSession.open(File(given.required("bundle")), options).use { session ->
            val cases = given["ask"]
            val text = if (cases != null) Questionnaire(session).answer(File(cases)) else bench(session, given)
            write(File(given.required("output")), text)
        }
    }

    private suspend fun bench(session: VlmSession, given: Arguments): String {
        val image = given["image"]?.let(::File)
        val default = BenchmarkSettings()
        val settings = BenchmarkSettings(
            promptTokens = given.number("prompt-tokens") ?: default.promptTokens,
            newTokens = given.number("new-tokens") ?: default.newTokens,
            repetitions = given.number("repetitions") ?: default.repetitions,
            threads = given.number("threads"),
            image = image?.name,
        )
        val benchmark = Benchmark(session, codec, settings) { System.err.println(it) }
        return benchmark.run(image?.let(ImageSource::File)).toJson()
    }

    /** Whoever waits for the file never sees half of it. */
    private fun write(file: File, text: String) {
        val part = File("${file.path}.part")
        try {
            part.writeText(text + "\n")
            if (!part.renameTo(file)) throw IOException("cannot be renamed from ${part.name}")
        } catch (error: IOException) {
            part.delete()
            throw EnvironmentException("${file.path}: cannot be written: ${error.reason()}", "name a file that can be", error)
        }
    }

    private companion object {
        const val EXIT_BUG = 1
    }
}

/** Options of the form `--name value`. */
internal class Arguments private constructor(private val values: Map<String, String>) {
    operator fun get(name: String): String? = values[name]

    fun required(name: String): String = values[name] ?: throw UsageException("--$name is missing", "docs/devices.md lists them")

    fun number(name: String): Int? = values[name]?.let {
        it.toIntOrNull() ?: throw UsageException("--$name $it is not a whole number", "give one")
    }

    companion object {
        private val KNOWN = setOf(
            "bundle", "image", "prompt-tokens", "new-tokens", "repetitions", "threads", "target", "output", "ask",
        )

        fun parse(arguments: Array<String>): Arguments {
            val values = HashMap<String, String>()
            for (pair in arguments.toList().chunked(2)) {
                val name = pair[0].removePrefix("--")
                if (!pair[0].startsWith("--") || name !in KNOWN) {
                    throw UsageException("no such option: ${pair[0]}", "known: ${KNOWN.joinToString { "--$it" }}")
                }
                val value = pair.getOrNull(1) ?: throw UsageException("${pair[0]} needs a value", "docs/devices.md lists them")
                if (values.put(name, value) != null) throw UsageException("${pair[0]} is given twice", "give it once")
            }
            return Arguments(values)
        }
    }
}
