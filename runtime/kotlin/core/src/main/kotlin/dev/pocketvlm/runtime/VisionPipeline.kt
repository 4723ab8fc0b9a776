package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.engine.EngineSession
import dev.pocketvlm.runtime.engine.Tensor
import java.util.concurrent.ArrayBlockingQueue
import java.util.concurrent.BlockingQueue
import java.util.concurrent.TimeUnit
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock

/**
 * Tiles to visual tokens: in batches, the patch embedding ahead of the transformer.
 *
 * With [overlap], a thread of its own runs patch_embed for the next batches while the caller's thread runs vision_encoder
 * and connector on the current one (BlueLM-V-3B, section 3.2). The stages are opened when they are first needed.
 *
 * @param openSession opens a graph by its name among the variant's stages.
 * @param batch tiles per batch.
 * @throws BundleException the stages do not have the inputs and outputs of these names.
 */
internal class VisionPipeline(
    private val variant: VariantSpec,
    private val openSession: (String) -> EngineSession,
    private val batch: Int,
    private val overlap: Boolean,
    private val trace: Trace,
) {
    init {
        VisionContract.check(variant)
    }

    private val use = ReentrantLock()

    @Volatile
    private var stages: Map<String, VisionStage> = emptyMap()

    /** Whether the stages are in memory. */
    val loaded: Boolean get() = stages.isNotEmpty()

    /** Opens the stages, if they are not. */
    fun load(): Unit = use.withLock {
        if (loaded) return
        val opened = LinkedHashMap<String, EngineSession>()
        try {
            for (name in VisionContract.stageNames(variant)) {
                trace.span("load", "stage" to name) { opened[name] = openSession(name) }
            }
        } catch (error: Throwable) {
            opened.values.forEach(EngineSession::close)
            throw error
        }
        stages = VisionContract.STAGES.associateWith { name ->
            VisionStage(variant.chain(name).map { variant.stages.getValue(it) to opened.getValue(it) })
        }
    }

    /** Closes the stages after the image in work, if any; [encode] opens them again. */
    fun release(): Unit = use.withLock {
        val closing = stages
        stages = emptyMap()
        closing.values.forEach(VisionStage::close)
    }

    /** Stops the runs in progress, if any. May be called from any thread. */
    fun cancel() {
        stages.values.forEach(VisionStage::cancel)
    }

    /**
     * Visual tokens float32 [tiles, T, H] of [tiles], float32 [tiles, 3, S, S].
     *
     * @throws CancelledException [cancelled] became true between two stages, or [cancel] was called during one.
     */
    fun encode(tiles: Tensor, cancelled: () -> Boolean): Tensor = use.withLock {
        load()
        val count = tiles.shape[0]
        val tokens = stage("connector").output(count)
        if (overlap) {
            PatchProducer(tiles, cancelled).use { producer ->
                producer.forEach { index, patches, start -> finish(index, patches, tokens, start, cancelled) }
            }
        } else {
            var scratch: Tensor? = null
            for ((index, start) in (0 until count step batch).withIndex()) {
                val size = minOf(batch, count - start)
                val room = scratch ?: stage("patch_embed").output(size).also { scratch = it }
                finish(index, embedPatches(index, tiles, start, size, room, cancelled), tokens, start, cancelled)
            }
        }
        tokens
    }

    private fun stage(name: String): VisionStage = stages.getValue(name)

    private fun embedPatches(index: Int, tiles: Tensor, start: Int, size: Int, room: Tensor, cancelled: () -> Boolean): Tensor {
        val patches = room.rows(0, size)
        run("patch_embed", index, tiles.rows(start, size), patches, cancelled)
        return patches
    }

    private fun finish(index: Int, patches: Tensor, tokens: Tensor, start: Int, cancelled: () -> Boolean) {
        val size = patches.shape[0]
        val features = stage("vision_encoder").scratch(size)
        run("vision_encoder", index, patches, features, cancelled)
        run("connector", index, features, tokens.rows(start, size), cancelled)
    }

    private fun run(stage: String, batch: Int, input: Tensor, output: Tensor, cancelled: () -> Boolean) {
        if (cancelled()) throw CancelledException("the image encoding was cancelled")
        trace.span(stage, "batch" to batch, "tiles" to input.shape[0]) {
            stage(stage).run(input, output, cancelled)
        }
    }

    /** Runs patch_embed for up to [BATCHES_AHEAD] batches ahead of who takes them. */
    private inner class PatchProducer(private val tiles: Tensor, private val cancelled: () -> Boolean) : AutoCloseable {
        private val count = tiles.shape[0]
        private val ready: BlockingQueue<Any> = ArrayBlockingQueue(BATCHES_AHEAD)

        // Besides those in the queue, one is being made and one is being used.
        private val free = ArrayBlockingQueue<Tensor>(BATCHES_AHEAD + 2)

        @Volatile
        private var stopped = false
        private val thread = Thread(::produce, "patch embedding").apply {
            isDaemon = true
            start()
        }

        fun forEach(work: (index: Int, patches: Tensor, start: Int) -> Unit) {
            for ((index, start) in (0 until count step batch).withIndex()) {
                val item = ready.take()
                if (item is Throwable) throw item
                work(index, item as Tensor, start)
                free.offer(item)
            }
        }

        override fun close() {
            stopped = true
            // The producer may be waiting for room in the queue.
            while (thread.isAlive) ready.poll(POLL_MILLIS, TimeUnit.MILLISECONDS)
            thread.join()
        }

        private fun produce() {
            try {
                for ((index, start) in (0 until count step batch).withIndex()) {
                    val size = minOf(batch, count - start)
                    val room = free.poll() ?: stage("patch_embed").output(minOf(batch, count))
                    ready.put(embedPatches(index, tiles, start, size, room, ::shouldStop))
                }
            } catch (error: Throwable) {
                ready.put(error)
            }
        }

        private fun shouldStop() = stopped || cancelled()
    }

    private companion object {
        const val BATCHES_AHEAD = 2
        const val POLL_MILLIS = 10L
    }
}

/** The graphs of one vision stage, in order. */
internal class VisionStage(private val parts: List<Pair<StageSpec, EngineSession>>) : AutoCloseable {
    private val source = parts.first().first.inputs[0]
    private val target = parts.last().first.outputs[0]
    private val fixedBatch = source.size(0)
    private val scratches = HashMap<Pair<String, Int>, Tensor>()

    /** Room for the results of [count] items. */
    fun output(count: Int): Tensor = room(target, count)

    /** The same, kept for the next call. */
    fun scratch(count: Int): Tensor = scratches.getOrPut("scratch" to count) { room(target, count) }

    /**
     * Results for [input] [n, ...], written to [output] [n, ...]; a fixed batch is filled up with zeros, whose results are
     * dropped.
     */
    fun run(input: Tensor, output: Tensor, cancelled: () -> Boolean) {
        val count = input.shape[0]
        val size = fixedBatch ?: return runParts(input, output, cancelled)
        for (start in 0 until count step size) {
            val rows = minOf(size, count - start)
            if (rows == size) {
                runParts(input.rows(start, size), output.rows(start, size), cancelled)
                continue
            }
            val padded = room(source, size)
            padded.floats().put(input.rows(start, rows).floats())
            val results = room(target, size)
            runParts(padded, results, cancelled)
            output.rows(start, rows).floats().put(results.rows(0, rows).floats())
        }
    }

    fun cancel() {
        parts.forEach { it.second.cancel() }
    }

    override fun close() {
        scratches.clear()
        parts.forEach { it.second.close() }
    }

    private fun runParts(input: Tensor, output: Tensor, cancelled: () -> Boolean) {
        val count = input.shape[0]
        val known = hashMapOf(source.name to input, target.name to output)
        for ((spec, session) in parts) {
            for (tensor in spec.outputs) {
                known.getOrPut(tensor.name) { scratches.getOrPut(tensor.name to count) { room(tensor, count) } }
            }
            val inputs = spec.inputs.associate { it.name to known.getValue(it.name) }
            val outputs = spec.outputs.associate { it.name to known.getValue(it.name) }
            session.bind(inputs, outputs).use { it.run(cancelled) }
        }
    }

    private fun room(tensor: TensorSpec, count: Int): Tensor =
        Tensor.zeros(tensor.type, listOf(count) + tensor.shape.drop(1).map { (it as? Dimension.Fixed)?.size ?: count })
}

/** Items [start] to [start] + [count] - 1 of the first dimension. */
internal fun Tensor.rows(start: Int, count: Int): Tensor {
    if (start == 0 && count == shape[0]) return this
    return view(start * (this.count / shape[0]), listOf(count) + shape.drop(1))
}
