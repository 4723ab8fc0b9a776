package dev.pocketvlm.demo.device

import android.content.Context
import android.system.Os
import dev.pocketvlm.android.DeviceFacts
import dev.pocketvlm.runtime.engine.NpuFacts
import dev.pocketvlm.runtime.engine.QnnLibraries
import java.io.File

/** Qualcomm's libraries for its NPU, in the variant of the app that was built with them. */
object QualcommNpu {
    /** Version of the `qnn-runtime` in gradle/libs.versions.toml. */
    const val QAIRT = "2.50.0"
    private const val BACKEND = "libQnnHtp.so"

    /** The libraries as files: the NPU loads its own half of them from there. Null in the variant without them. */
    fun find(context: Context): QnnLibraries? {
        val folder = context.applicationInfo.nativeLibraryDir
        if (!File(folder, BACKEND).isFile) return null
        Os.setenv("ADSP_LIBRARY_PATH", folder, true)
        return QnnLibraries(provider = null, BACKEND, NpuFacts(DeviceFacts.read().soc, QAIRT, emulated = false))
    }
}
