package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.engine.BoundRun
import dev.pocketvlm.runtime.engine.EngineSession
import dev.pocketvlm.runtime.engine.Memory
import dev.pocketvlm.runtime.engine.Tensor
import java.nio.FloatBuffer

/** Embeddings that are made as they are needed. */
internal interface Rows {
    /** Number of positions. */
    val size: Int

    /** Writes the embeddings of positions [start] to [start] + n - 1 into [out], float32 [1, n, H]. */
    fun fill(start: Int, out: Tensor)
}

/**
 * The language model of one variant, with its cache: token embedding, prefill in chunks, one step at a time.
 *
 * Positions 0 to [length] - 1 are in the cache. Whatever is thrown, [length] only counts columns that are whole.
 *
 * A call runs a chain of graphs over named buffers: what determines positions, if that is a stage of its own, the parts of
 * prefill or decode, and lm_head, if there is one, for the position whose logits are wanted.
 *
 * @param sessions opened graphs by stage name; two of them may be the same session.
 * @throws BundleException the stages do not have the inputs and outputs of a decoder.
 */
internal class Decoder(
    private val variant: VariantSpec,
    private val sessions: Map<String, EngineSession>,
    private val trace: Trace,
    memory: Memory,
) {
    init {
        DecoderContract.check(variant)
    }

    private val chains = listOf("prefill", "decode").associateWith { DecoderContract.chain(variant, it) }
    private val cache = KvCache(variant.kvCache, memory)
    private val inPlace = variant.kvCache.protocol == CacheProtocol.IN_PLACE
    private val fixedChunk: Int? = find("prefill", "embeddings").size(1)
    private val hasHead = "lm_head" in variant.stages
    private val chunkGivesLogits = "logits" in outputsOf(chains.getValue("prefill").last())

    /** Most positions of one prefill call. */
    val chunkSize: Int = fixedChunk ?: variant.kvCache.chunkSize

    /** Size of an embedding. */
    val hiddenSize: Int = DecoderContract.lastSize(find("decode", "embeddings"))

    /** Number of tokens that the logits speak of. */
    val vocabSize: Int = logitsSize()

    /** Seconds inside the engine so far. */
    var engineSeconds: Double = 0.0
        private set

    private val chunk = floats(1, chunkSize, hiddenSize)
    private val row = floats(1, 1, hiddenSize)
    private val token = Tensor.zeros(TensorType.INT64, listOf(1, 1))
    private val past = Tensor.zeros(TensorType.INT64, listOf(1))
    private val logits = floats(1, vocabSize)
    private val logitsView = logits.floats()
    private val embedRow =
        sessions.getValue("embed_tokens").bind(mapOf("token_ids" to token), mapOf("embeddings" to row))
    private val step = bind("decode", row)
    private val fullChunk = bind("prefill", chunk)
    private val head: BoundRun? = step.hidden.takeIf { hasHead }?.let {
        sessions.getValue("lm_head").bind(mapOf("hidden" to it), mapOf("logits" to logits))
    }

    /** Positions in the cache. */
    val length: Int get() = cache.length

    /** Largest number of positions. */
    val capacity: Int get() = cache.spec.capacity

    /** Bytes of the cache at full capacity. */
    val cacheBytes: Long get() = cache.bytes

    /** Embeddings of token ids, written to [out], float32 [1, n, H]. */
    fun embed(tokenIds: IntArray, out: Tensor) {
        val ids = Tensor.zeros(TensorType.INT64, listOf(1, tokenIds.size))
        val numbers = ids.longs()
        for ((index, id) in tokenIds.withIndex()) numbers.put(index, id.toLong())
        sessions.getValue("embed_tokens").bind(mapOf("token_ids" to ids), mapOf("embeddings" to out)).use { it.run() }
    }

    /**
     * Computes positions [start] to the end of [rows] in chunks; returns the last position's logits [V], which the next call
     * of [prefill] or [step] overwrites. The cache must hold the first [start] positions; later ones are forgotten.
     *
     * @throws CancelledException [cancelled] became true between chunks, or [cancel] was called during one. The chunks
     *   before stay in the cache.
     */
    fun prefill(rows: Rows, start: Int, cancelled: () -> Boolean): FloatBuffer {
        val total = rows.size
        require(start in 0 until total && total <= capacity) {
            "cannot prefill positions $start to $total of a cache of $capacity"
        }
        cache.truncate(start)
        while (length < total) {
            if (cancelled()) throw CancelledException("the prefill was cancelled")
            prefillChunk(rows, minOf(chunkSize, total - length), total, cancelled)
        }
        return logitsView
    }

    /**
     * Appends one token; returns the logits [V] of the next, which the next call overwrites.
     *
     * @throws CancelledException [cancelled] became true and [cancel] was called meanwhile; the token is then not in the cache.
     */
    fun step(tokenId: Int, cancelled: () -> Boolean): FloatBuffer {
        require(length < capacity) { "the cache is full: $capacity positions" }
        trace.span("decode", "position" to length) {
            token.data.putLong(0, tokenId.toLong())
            engineSeconds += embedRow.run()
            run(step, 1, cancelled)
            runHead(cancelled)
        }
        return logitsView
    }

    /** Stops the run in progress, if any. May be called from any thread. */
    fun cancel() {
        sessions.values.forEach(EngineSession::cancel)
    }

    private fun prefillChunk(rows: Rows, wanted: Int, total: Int, cancelled: () -> Boolean) {
        // A graph of fixed length gives the logits of the last place, which may be padding, and some give none. Then the
        // last token goes through the decode stage instead, unless there is a head for any position.
        val padded = fixedChunk != null && wanted < chunkSize
        val last = length + wanted == total
        val lastByStep = last && !hasHead && (padded || !chunkGivesLogits)
        trace.span("prefill", "position" to length, "tokens" to wanted) {
            val count = if (lastByStep) wanted - 1 else wanted
            if (count > 0) runChunk(rows, count, last, cancelled)
            if (lastByStep) {
                rows.fill(total - 1, row)
                run(step, 1, cancelled)
            }
        }
    }

    private fun runChunk(rows: Rows, count: Int, last: Boolean, cancelled: () -> Boolean) {
        rows.fill(length, chunk.view(0, listOf(1, count, hiddenSize)))
        if (count < chunkSize && fixedChunk == null) {
            bind("prefill", chunk.view(0, listOf(1, count, hiddenSize))).use { run(it, count, last, cancelled) }
            return
        }
        val numbers = chunk.floats()
        for (index in count * hiddenSize until chunkSize * hiddenSize) numbers.put(index, 0f)
        run(fullChunk, count, last, cancelled)
    }

    private fun run(bound: Bound, count: Int, last: Boolean, cancelled: () -> Boolean) {
        run(bound, count, cancelled)
        if (!last || !hasHead) return
        val source = bound.hidden!!.floats()
        val target = step.hidden!!.floats()
        for (index in 0 until hiddenSize) target.put(index, source[(count - 1) * hiddenSize + index])
        runHead(cancelled)
    }

    private fun run(bound: Bound, count: Int, cancelled: () -> Boolean) {
        past.data.putLong(0, length.toLong())
        for (run in bound.runs) engineSeconds += run.run(cancelled)
        if (inPlace) cache.advance(count) else cache.append(bound.new, count)
    }

    private fun runHead(cancelled: () -> Boolean) {
        head?.let { engineSeconds += it.run(cancelled) }
    }

    private fun bind(chain: String, embeddings: Tensor): Bound {
        val known = HashMap(cache.past())
        if (inPlace) known += cache.present()
        known["embeddings"] = embeddings
        known["past_length"] = past
        known["logits"] = logits
        val runs = chains.getValue(chain).map { name ->
            val stage = variant.stages.getValue(name)
            for (tensor in stage.outputs) known.getOrPut(tensor.name) { output(tensor, embeddings.shape[1]) }
            sessions.getValue(name).bind(
                stage.inputs.associate { it.name to known.getValue(it.name) },
                stage.outputs.associate { it.name to known.getValue(it.name) },
            )
        }
        return Bound(runs, known.filterKeys { it.startsWith("new_") }, known["hidden"])
    }

    private fun output(tensor: TensorSpec, length: Int): Tensor =
        Tensor.zeros(tensor.type, tensor.shape.map { (it as? Dimension.Fixed)?.size ?: length })

    /** The input [name] of the first graph of a chain that has it. */
    private fun find(chain: String, name: String): TensorSpec =
        chains.getValue(chain).flatMap { variant.stages.getValue(it).inputs }.first { it.name == name }

    private fun outputsOf(stage: String): List<String> = variant.stages.getValue(stage).outputs.map { it.name }

    private fun logitsSize(): Int {
        val stage = if (hasHead) "lm_head" else chains.getValue("decode").last()
        return DecoderContract.lastSize(variant.stages.getValue(stage).outputs.first { it.name == "logits" })
    }

    private fun floats(vararg shape: Int) = Tensor.zeros(TensorType.FLOAT32, shape.toList())

    /**
     * A chain of graphs on its buffers.
     *
     * @property new arrays of the protocol in which the runtime writes columns.
     * @property hidden last hidden states, for lm_head.
     */
    private class Bound(val runs: List<BoundRun>, val new: Map<String, Tensor>, val hidden: Tensor?) : AutoCloseable {
        override fun close() = runs.forEach(BoundRun::close)
    }
}
