package dev.pocketvlm.runtime.engine

import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtException.OrtErrorCode
import ai.onnxruntime.OrtLoggingLevel
import ai.onnxruntime.OrtSession
import ai.onnxruntime.OrtSession.SessionOptions.OptLevel
import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.EnvironmentException
import java.io.File

/**
 * ONNX Runtime on the CPU, through its Java API.
 *
 * Options are those of docs/bundle.md: `graph_optimization`, `int8_products`, `arm_kernels`, and the session configuration entries that
 * name no file or library.
 */
public class OrtEngine : Engine {
    private val environment = ortEnvironment()

    override val version: String get() = environment.version

    override fun open(file: File, options: Map<String, String>, threads: Int?): EngineSession {
        val name = graphName(file)
        return sessionOptions(options, threads).use { settings ->
            OrtGraph(environment, openSession(environment, file, settings, name, "ONNX Runtime ${environment.version}"), name)
        }
    }

    private fun sessionOptions(options: Map<String, String>, threads: Int?): OrtSession.SessionOptions {
        val settings = OrtSession.SessionOptions()
        try {
            settings.setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL)
            settings.setInterOpNumThreads(1)
            // ONNX Runtime plans memory by the shapes of the inputs. Chunks of one shape need more the deeper the cache, so
            // that a plan fits none of them, and its blocks only add to the memory.
            settings.setMemoryPatternOptimization(false)
            threads?.let(settings::setIntraOpNumThreads)
            for ((key, value) in options) apply(settings, options, key, value)
            settings.addConfigEntry(NO_KLEIDIAI, withoutKleidiAi(options))
            return settings
        } catch (error: Throwable) {
            settings.close()
            throw error
        }
    }

    private fun apply(settings: OrtSession.SessionOptions, options: Map<String, String>, key: String, value: String) {
        val level = OPTIMIZATION_LEVELS[value]
        when {
            key == "graph_optimization" && level != null -> settings.setOptimizationLevel(level)
            key == "int8_products" && value == "exact" -> {
                if (options["graph_optimization"] in listOf("disabled", "basic")) {
                    throw BundleException(
                        "manifest.json: engine option int8_products=exact takes more than basic graph_optimization",
                    )
                }
                // Only where it is needed: ONNX Runtime obeys on every x86 processor, and slows those with VNNI or AMX down.
                if (Int8Products.saturating) settings.addConfigEntry("session.x64quantprecision", "1")
            }
            key in CONFIG_ENTRIES -> settings.addConfigEntry(key, value)
            key == NO_KLEIDIAI || (key == "arm_kernels" && value in ARM_KERNELS) -> Unit
            else -> throw BundleException(
                "manifest.json: engine option $key='$value' is not known to onnxruntime",
                "update PocketVLM",
            )
        }
    }

    /** The entry that follows from `arm_kernels`, unless the bundle sets the entry itself. */
    private fun withoutKleidiAi(options: Map<String, String>): String {
        val entry = options[NO_KLEIDIAI]
        val named = options["arm_kernels"]
        if (entry != null && named != null && entry != ARM_KERNELS[named]) {
            throw BundleException(
                "manifest.json: engine options arm_kernels=$named and $NO_KLEIDIAI=$entry contradict each other",
            )
        }
        return entry ?: ARM_KERNELS.getValue(named ?: "faithful")
    }

    private companion object {
        // Arm's KleidiAI, with which ONNX Runtime replaces its own kernels on ARM. It has no effect on other processors.
        const val NO_KLEIDIAI = "mlas.disable_kleidiai"

        // The values of arm_kernels, and the entry that they stand for.
        val ARM_KERNELS = mapOf("faithful" to "1", "fastest" to "0")

        // A bundle may come from a stranger, so only options that cannot name a file or a library are passed on.
        val CONFIG_ENTRIES = setOf(
            "mlas.enable_gemm_fastmath_arm64_bfloat16",
            "session.disable_prepacking",
            "session.dynamic_block_base",
            "session.intra_op.allow_spinning",
            "session.qdq_matmulnbits_accuracy_level",
            "session.set_denormal_as_zero",
        )
        val OPTIMIZATION_LEVELS = mapOf(
            "disabled" to OptLevel.NO_OPT,
            "basic" to OptLevel.BASIC_OPT,
            "extended" to OptLevel.EXTENDED_OPT,
            "all" to OptLevel.ALL_OPT,
        )
    }
}

/** The process's one environment. What fails is thrown; ONNX Runtime would print it, too, and a cancelled run as an error. */
internal fun ortEnvironment(): OrtEnvironment {
    val environment = OrtEnvironment.getEnvironment(OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL, "pocketvlm")
    environment.setTelemetry(false)
    return environment
}

internal fun openSession(
    environment: OrtEnvironment,
    file: File,
    settings: OrtSession.SessionOptions,
    name: String,
    program: String,
): OrtSession = try {
    environment.createSession(file.path, settings)
} catch (error: OrtException) {
    if (error.code in BAD_FILE) {
        throw BundleException("$name: $program cannot load it: ${firstLine(error)}", "export the checkpoint again", error)
    }
    throw EnvironmentException("$name: $program failed to load it: ${firstLine(error)}", cause = error)
}

/** What messages call a graph: with its folder, since the variants of a bundle have files of the same names. */
internal fun graphName(file: File): String = listOfNotNull(file.parentFile?.name, file.name).joinToString("/")

/** What went wrong, without the trace that ONNX Runtime may append. */
internal fun firstLine(error: Throwable): String =
    error.message.orEmpty().trim().lineSequence().first().ifEmpty { error.javaClass.simpleName }

private val BAD_FILE = setOf(
    OrtErrorCode.ORT_INVALID_PROTOBUF,
    OrtErrorCode.ORT_INVALID_GRAPH,
    OrtErrorCode.ORT_INVALID_ARGUMENT,
    OrtErrorCode.ORT_NO_SUCHFILE,
    OrtErrorCode.ORT_NO_MODEL,
    OrtErrorCode.ORT_NOT_IMPLEMENTED,
    OrtErrorCode.ORT_FAIL,
    OrtErrorCode.ORT_EP_FAIL,
)
