package dev.pocketvlm.runner

import dev.pocketvlm.android.BitmapCodec
import dev.pocketvlm.android.SharedMemoryBuffers
import kotlin.system.exitProcess

/**
 * The program that `pocketvlm bench --device` starts on a phone, without an app:
 *
 *     CLASSPATH=DIR/pocketvlm-runner.jar app_process -Djava.library.path=DIR/lib DIR dev.pocketvlm.runner.Main --bundle ... --output ...
 *
 * ONNX Runtime asks for its libraries by name, and the class loader of the jar looks for them in java.library.path.
 */
public object Main {
    /** Ends the process with the exit code of [Runner.run]. */
    @JvmStatic
    public fun main(arguments: Array<String>) {
        // Android itself would only log what is thrown here, and end with 0 or 1.
        exitProcess(Runner(BitmapCodec(), memory = SharedMemoryBuffers).run(arguments))
    }
}
