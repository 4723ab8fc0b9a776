package dev.pocketvlm.runtime.engine

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtException.OrtErrorCode
import ai.onnxruntime.OrtSession
import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.CancelledException
import dev.pocketvlm.runtime.EnvironmentException
import dev.pocketvlm.runtime.TensorType
import java.util.IdentityHashMap

/** One `OrtSession`. */
internal class OrtGraph(
    private val environment: OrtEnvironment,
    session: OrtSession,
    private val name: String,
) : EngineSession {
    private var session: OrtSession? = session
    private val inputNames = session.inputNames
    private val outputNames = session.outputNames
    private val bound = HashSet<OrtBoundRun>()

    // Guards the two below, and with it RunOptions against being closed while another thread sets them.
    private val runs = Any()
    private val running = HashSet<RunInProgress>()
    private val idle = ArrayList<RunInProgress>()

    override fun bind(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>): BoundRun {
        val unknown = (inputs.keys - inputNames) + (outputs.keys - outputNames) + (inputNames - inputs.keys)
        if (unknown.isNotEmpty()) {
            throw BundleException(
                "$name: the graph's inputs and outputs differ in ${unknown.sorted().take(4).joinToString()}",
                "the graph does not fit the manifest; export the checkpoint again",
            )
        }
        val run = OrtBoundRun(this, inputs, outputs)
        synchronized(bound) { bound += run }
        return run
    }

    override fun cancel() {
        synchronized(runs) { running.forEach(RunInProgress::terminate) }
    }

    override fun close() {
        synchronized(bound) { bound.toList() }.forEach(OrtBoundRun::close)
        session?.close()
        session = null
        synchronized(runs) {
            idle.forEach(RunInProgress::close)
            idle.clear()
        }
    }

    fun run(inputs: Map<String, OnnxTensor>, outputs: Map<String, OnnxTensor>, cancelled: () -> Boolean): Double {
        val opened = session ?: throw EnvironmentException("$name: the engine session is closed")
        val current = begin()
        try {
            if (cancelled()) throw CancelledException("$name: the run was cancelled")
            val start = System.nanoTime()
            opened.run(inputs, NO_NAMES, outputs, current.options).close()
            return (System.nanoTime() - start) * 1e-9
        } catch (error: OrtException) {
            throw failure(error, current.terminated)
        } finally {
            end(current)
        }
    }

    fun tensor(value: Tensor): OnnxTensor {
        val shape = LongArray(value.shape.size) { value.shape[it].toLong() }
        return when (value.type) {
            TensorType.FLOAT32 -> OnnxTensor.createTensor(environment, value.floats(), shape)
            TensorType.INT64 -> OnnxTensor.createTensor(environment, value.longs(), shape)
            TensorType.INT32 -> OnnxTensor.createTensor(environment, value.data.asIntBuffer(), shape)
            TensorType.FLOAT16 -> OnnxTensor.createTensor(environment, value.data.asShortBuffer(), shape, OnnxJavaType.FLOAT16)
            TensorType.INT8 -> OnnxTensor.createTensor(environment, value.data, shape, OnnxJavaType.INT8)
            TensorType.UINT8 -> OnnxTensor.createTensor(environment, value.data, shape, OnnxJavaType.UINT8)
            TensorType.BOOL -> OnnxTensor.createTensor(environment, value.data, shape, OnnxJavaType.BOOL)
        }
    }

    fun forget(run: OrtBoundRun) {
        synchronized(bound) { bound -= run }
    }

    /** Options for one run, which [cancel] reaches until [end]. */
    private fun begin(): RunInProgress = synchronized(runs) {
        val current = idle.removeLastOrNull() ?: RunInProgress()
        running += current
        current
    }

    private fun end(current: RunInProgress) {
        synchronized(runs) {
            running -= current
            if (current.terminated || session == null) current.close() else idle += current
        }
    }

    private fun failure(error: OrtException, terminated: Boolean): Exception = when {
        terminated -> CancelledException("$name: the run was cancelled")
        error.code == OrtErrorCode.ORT_INVALID_ARGUMENT -> BundleException(
            "$name: the graph refuses its inputs: ${firstLine(error)}",
            "the graph does not fit the manifest; export the checkpoint again",
            error,
        )
        else -> EnvironmentException("$name: ONNX Runtime failed: ${firstLine(error)}", cause = error)
    }

    private class RunInProgress : AutoCloseable {
        val options = OrtSession.RunOptions()

        @Volatile
        var terminated = false
            private set

        fun terminate() {
            terminated = true
            options.setTerminate(true)
        }

        override fun close() = options.close()
    }

    private companion object {
        val NO_NAMES = emptySet<String>()
    }
}

/** A graph over direct buffers: the engine's values share their memory. */
internal class OrtBoundRun(
    private val owner: OrtGraph,
    inputs: Map<String, Tensor>,
    outputs: Map<String, Tensor>,
) : BoundRun {
    // One value per tensor, so that an operator sees that its input and output are the same buffer.
    private val values = IdentityHashMap<Tensor, OnnxTensor>()
    private val inputValues = inputs.mapValues { (_, tensor) -> values.getOrPut(tensor) { owner.tensor(tensor) } }
    private val outputValues = outputs.mapValues { (_, tensor) -> values.getOrPut(tensor) { owner.tensor(tensor) } }
    private var closed = false

    override fun run(cancelled: () -> Boolean): Double {
        if (closed) throw EnvironmentException("a graph was run after its tensors were let go")
        return owner.run(inputValues, outputValues, cancelled)
    }

    override fun close() {
        if (closed) return
        closed = true
        owner.forget(this)
        values.values.forEach(OnnxTensor::close)
    }
}
