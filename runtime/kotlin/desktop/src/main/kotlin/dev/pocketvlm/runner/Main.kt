package dev.pocketvlm.runner

import dev.pocketvlm.desktop.ImageIoCodec
import dev.pocketvlm.runtime.engine.Engines
import dev.pocketvlm.runtime.engine.NpuFacts
import dev.pocketvlm.runtime.engine.QnnLibraries
import kotlin.system.exitProcess

/**
 * The runner on a desktop: docs/devices.md lists its options.
 *
 * Where the system properties `pocketvlm.qnn.provider`, `pocketvlm.qnn.backend` and `pocketvlm.qnn.qairt` name ONNX Runtime's
 * QNN plugin, Qualcomm's library and its version, variants for the NPU run on Qualcomm's emulation.
 */
public object Main {
    @JvmStatic
    public fun main(arguments: Array<String>) {
        exitProcess(Runner(ImageIoCodec(), Engines.standard(emulatedNpu())).run(arguments))
    }

    private fun emulatedNpu(): QnnLibraries? {
        val (provider, backend, version) = listOf("provider", "backend", "qairt").map { System.getProperty("pocketvlm.qnn.$it") }
        if (backend == null || version == null) return null
        return QnnLibraries(provider, backend, NpuFacts(soc = null, qairt = version, emulated = true))
    }
}
