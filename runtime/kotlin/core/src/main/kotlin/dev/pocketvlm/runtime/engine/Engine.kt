package dev.pocketvlm.runtime.engine

import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.EnvironmentException
import dev.pocketvlm.runtime.CancelledException
import java.io.File

/**
 * A program that runs graphs. ONNX Runtime is one ([OrtEngine]); another one, such as ExecuTorch, is another class and one
 * more line in [Engines].
 */
public interface Engine {
    /** Version of the program. */
    public val version: String

    /** What is known of the NPU that this engine runs graphs on; null where it has none. */
    public val npu: NpuFacts? get() = null

    /**
     * Loads the graph in [file]; files that it refers to lie beside it.
     *
     * @param options engine options of the variant, from the manifest.
     * @param threads threads of one operator; null leaves the choice to the engine.
     * @throws BundleException the file or an option is not one that this engine knows.
     * @throws EnvironmentException this machine cannot run it.
     */
    public fun open(file: File, options: Map<String, String>, threads: Int?): EngineSession
}

/**
 * An NPU and its runtime.
 *
 * @property soc name of the SoC, as Android's `ro.soc.model` gives it; null where nothing tells.
 * @property qairt version of Qualcomm's libraries, such as "2.50.40".
 * @property emulated whether graphs run on an emulation of the NPU, which is for checks, not for speed.
 */
public data class NpuFacts(val soc: String?, val qairt: String, val emulated: Boolean)

/** One opened graph. [cancel] may be called from any thread; everything else from one at a time. */
public interface EngineSession : AutoCloseable {
    /**
     * Ties the graph to tensors that the caller fills and reads between runs.
     *
     * The same tensor may stand in both maps: the graph then writes it in place. Outputs that are not named are discarded.
     *
     * @throws BundleException the graph has no such inputs or outputs.
     */
    public fun bind(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>): BoundRun

    /** Stops the runs in progress, if any; they throw [CancelledException]. Later runs are not affected. */
    public fun cancel()

    /** Frees the graph and its weights; what was bound cannot run any more. Closing twice is allowed. */
    override fun close()
}

/** A graph whose inputs and outputs are fixed tensors: each call reads the former and writes the latter. */
public interface BoundRun : AutoCloseable {
    /**
     * Runs the graph once; returns the seconds inside the engine, without what this program does around it.
     *
     * @param cancelled is asked once [EngineSession.cancel] would reach this run: who first makes it true and then calls
     *   `cancel` is never too early.
     * @throws CancelledException [cancelled] was true, or [EngineSession.cancel] was called meanwhile; the outputs are then
     *   undefined.
     * @throws BundleException the graph refuses the tensors.
     * @throws EnvironmentException the engine failed.
     */
    public fun run(cancelled: () -> Boolean = { false }): Double

    /** Lets go of the tensors. Closing twice is allowed. */
    override fun close()
}

/**
 * The engines by the names that manifests call them.
 *
 * @param makers each is called on first use; what it throws says that the engine is not here.
 */
public class Engines(private val makers: Map<String, () -> Engine>) {
    private val loaded = HashMap<String, Engine>()

    /**
     * The engine called [name].
     *
     * @throws BundleException no such engine.
     * @throws EnvironmentException it cannot be loaded here.
     */
    public fun load(name: String): Engine = synchronized(loaded) {
        loaded[name]?.let { return it }
        val maker = makers[name] ?: throw BundleException("engine '$name' is not known", "update PocketVLM")
        val engine = try {
            maker()
        } catch (error: LinkageError) {
            // A native library that is not in the app, or not for this processor.
            throw EnvironmentException("engine '$name' cannot be loaded: ${error.message}", "add the library that it names", error)
        }
        engine.also { loaded[name] = it }
    }

    public companion object {
        /**
         * ONNX Runtime on the CPU, and the scripted engine of tests.
         *
         * @param npu Qualcomm's NPU, where its libraries are at hand.
         */
        public fun standard(npu: QnnLibraries? = null): Engines = Engines(
            mapOf(
                "onnxruntime" to { OrtEngine() },
                "onnxruntime-qnn" to {
                    QnnEngine(
                        npu ?: throw EnvironmentException(
                            "no Qualcomm libraries were given",
                            "add onnxruntime-android-qnn and qnn-runtime, and pass QnnLibraries",
                        ),
                    )
                },
                "fake" to { FakeEngine() },
            ),
        )
    }
}
