package dev.pocketvlm.runtime.engine

import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtLoggingLevel
import ai.onnxruntime.OrtSession
import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.EnvironmentException
import java.io.File

/**
 * Where ONNX Runtime's QNN execution provider and Qualcomm's libraries are.
 *
 * @property provider path of the provider as a plugin (`libonnxruntime_providers_qnn.so`); null where ONNX Runtime was built
 *   with it, as `onnxruntime-android-qnn` is.
 * @property backend path or name of Qualcomm's `libQnnHtp.so`.
 * @property facts of the NPU. The version of Qualcomm's libraries is that of the `qnn-runtime` that the app brings along.
 */
public data class QnnLibraries(val provider: String?, val backend: String, val facts: NpuFacts)

/**
 * ONNX Runtime on Qualcomm's NPU. Opens context binaries: small models that name a binary beside them. Everything runs on
 * the NPU, or, on x86-64, on Qualcomm's emulation of it; an operator that it cannot take is an error.
 *
 * Options: `shared_weights` ("1": the binary holds the graphs of several models, each of which is opened with this option,
 * and is loaded once), `soc_model`, `htp_arch`, `vtcm_mb` and `htp_performance_mode`, the provider's own.
 */
public class QnnEngine(private val libraries: QnnLibraries) : Engine {
    override val npu: NpuFacts = libraries.facts

    private val environment: OrtEnvironment = ortEnvironment()

    override val version: String get() = environment.version

    init {
        libraries.provider?.let { register(environment, it) }
    }

    override fun open(file: File, options: Map<String, String>, threads: Int?): EngineSession {
        val name = graphName(file)
        for ((key, value) in options) {
            if (key !in PROVIDER_OPTIONS && !(key == SHARED && value == "1")) {
                throw BundleException(
                    "manifest.json: engine option $key='$value' is not known to onnxruntime-qnn",
                    "update PocketVLM",
                )
            }
        }
        OrtSession.SessionOptions().use { settings ->
            settings.setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL)
            // An operator that the NPU cannot take is an error, not a reason to run it elsewhere.
            settings.addConfigEntry("session.disable_cpu_ep_fallback", "1")
            if (SHARED in options) settings.addConfigEntry("ep.share_ep_contexts", "1")
            // Without the second, quantizing float inputs and outputs would be left to the CPU.
            val fixed = mapOf("backend_path" to libraries.backend, "offload_graph_io_quantization" to "0")
            addProvider(settings, fixed + options.filterKeys { it in PROVIDER_OPTIONS })
            return OrtGraph(environment, openSession(environment, file, settings, name, "the NPU's runtime"), name)
        }
    }

    private fun addProvider(settings: OrtSession.SessionOptions, options: Map<String, String>) {
        try {
            if (libraries.provider == null) {
                settings.addQnn(options)
                return
            }
            val devices = environment.epDevices.filter { it.epName == PROVIDER }
            if (devices.isEmpty()) {
                throw EnvironmentException(
                    "${libraries.provider} finds no device here",
                    "run it on a Snapdragon, or on x86-64 to emulate one",
                )
            }
            settings.addExecutionProvider(devices.take(1), options)
        } catch (error: OrtException) {
            throw EnvironmentException("the NPU's runtime cannot be used: ${firstLine(error)}", cause = error)
        }
    }

    private companion object {
        const val PROVIDER = "QNNExecutionProvider"
        const val SHARED = "shared_weights"
        val PROVIDER_OPTIONS = setOf("soc_model", "htp_arch", "vtcm_mb", "htp_performance_mode")
        val registered = HashSet<String>()

        /** A provider is loaded once per process. */
        fun register(environment: OrtEnvironment, path: String) {
            synchronized(registered) {
                if (path in registered) return
                try {
                    environment.registerExecutionProviderLibrary(PROVIDER, path)
                } catch (error: OrtException) {
                    throw EnvironmentException("$path cannot be loaded: ${firstLine(error)}", cause = error)
                }
                registered += path
            }
        }
    }
}
