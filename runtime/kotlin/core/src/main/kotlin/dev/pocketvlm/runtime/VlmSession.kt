package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.engine.Engines
import dev.pocketvlm.runtime.engine.Memory
import dev.pocketvlm.runtime.image.ImageDecoder
import dev.pocketvlm.runtime.image.ImageSource
import dev.pocketvlm.runtime.sampler.SamplingOptions
import java.io.File
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.channelFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/**
 * How a session works.
 *
 * @property imageDecoder opens image files: `javax.imageio` on a desktop, `Bitmap` on Android.
 * @property target which variant, by target or name, or two of them; see [Bundle.variant].
 * @property threads threads of one operator; null leaves the choice to the engine.
 * @property visionBatch tiles per batch; null takes the variant's own.
 * @property overlap run the patch embedding of the next batches beside the vision blocks of the current one.
 * @property release when the vision stages leave memory.
 * @property verify compare every file's sha256 with the manifest before anything is loaded.
 * @property maxLength most positions of the KV cache that prompt and answer may take; null takes all. The answer's last token
 *   takes none.
 * @property imageCacheMb most memory, in MiB, for the visual tokens of images that may be shown again; 0 keeps none.
 * @property trace collects what ran when.
 * @property engines what runs the graphs.
 * @property memory where the KV cache lies.
 * @property unpackTo where a zip is unpacked.
 */
public data class SessionOptions(
    val imageDecoder: ImageDecoder,
    val target: String? = null,
    val threads: Int? = null,
    val visionBatch: Int? = null,
    val overlap: Boolean = true,
    val release: ReleasePolicy = ReleasePolicy.KEEP,
    val verify: Boolean = true,
    val maxLength: Int? = null,
    val imageCacheMb: Int = 64,
    val trace: Trace = Trace.OFF,
    val engines: Engines = Engines.standard(),
    val memory: Memory = Memory.DIRECT,
    val unpackTo: File = File(System.getProperty("java.io.tmpdir") ?: "."),
)

/**
 * One variant of a bundle, in memory. Use [VlmSession.open].
 *
 * ```
 * VlmSession.open(File("demo-bundle"), SessionOptions(imageDecoder)).use { session ->
 *     val screen = session.encode(ImageSource.of(File("screen.png")))     // returns at once
 *     session.chat(listOf(Message.user("What is the battery level?", screen))).collect { event ->
 *         if (event is ChatEvent.Text) print(event.piece)
 *     }
 * }
 * ```
 *
 * Images are encoded on a thread of their own, also while an answer is being generated. One answer at a time. [close] may be
 * called from any thread.
 */
public class VlmSession private constructor(
    private val bundle: Bundle,
    /** The variant in use. */
    public val variant: VariantSpec,
    private val options: SessionOptions,
    private val parts: SessionParts,
    private val loadMs: Double,
) : AutoCloseable {
    private val turn = Turn(parts.decoder)
    private val workshop = Workshop(
        decoder = parts.decoder,
        prompt = parts.prompt,
        tokenizer = parts.tokenizer,
        encode = parts.encoder::encode,
        preprocessing = parts.encoder.preprocessing,
        stopTokenIds = bundle.manifest.tokenizer.stopTokenIds.toSet(),
        imageTokenId = bundle.manifest.tokenizer.imageTokenId,
        maxLength = minOf(parts.decoder.capacity, options.maxLength ?: parts.decoder.capacity),
        figures = ::figures,
        trace = options.trace,
    )

    /** What the bundle's `manifest.json` says. */
    public val manifest: Manifest get() = bundle.manifest

    /** The variant's target and engine, as in [Metrics.backendActual]. */
    public val backend: String get() = backendName(variant, options.engines)

    /** The engine of each graph, and whether its device is emulated: "onnxruntime-qnn, emulated". */
    public val stageEngines: Map<String, String> get() = stageEngines(variant, options.engines)

    /** Version of the program that runs the language model. */
    public val engineVersion: String get() = options.engines.load(variant.engineOf(variant.chain("decode").first()).engine).version

    /** Bytes of the KV cache at full capacity. */
    public val cacheBytes: Long get() = parts.decoder.cacheBytes

    /**
     * Begins to encode an image and returns at once. An image whose pixels were encoded before is taken from the session's
     * cache.
     *
     * @throws UsageException the session is closed. What is wrong with the image itself is thrown by the result's methods.
     */
    public fun encode(image: ImageSource): EncodedImage = parts.encoder.encode(image)

    /**
     * Answers a conversation; the work begins when the flow is collected, on a thread of its own, and does not wait for the
     * reader. Positions that this conversation shares with the one before are not computed again.
     *
     * Cancelling the collector ends the work within one chunk or token, as does [stop], after which the flow ends with
     * [ChatEvent.Finished].
     *
     * The flow throws [UsageException] (an option outside its range; the session is closed, or still answering another
     * question; an image of another bundle), [PromptException], [ContextLengthException] (nothing of the prompt has been
     * computed), [ImageException], [CancelledException] (an image of the prompt was cancelled), [EnvironmentException].
     */
    public fun chat(messages: List<Message>, options: ChatOptions = ChatOptions()): Flow<ChatEvent> = channelFlow {
        val answer = Answer(workshop, messages, options.maxNewTokens, sampling(options), options.stop)
        turn.begin(answer)
        val work = launch(turn.dispatcher) {
            try {
                answer.run { trySend(it) }
            } finally {
                turn.end(answer)
            }
        }
        try {
            work.join()
        } catch (error: CancellationException) {
            // The reader has gone: a native run does not notice by itself.
            turn.cancel(answer)
            throw error
        } finally {
            // Where the work was cancelled before it began.
            work.invokeOnCompletion { turn.end(answer) }
        }
    }.buffer(Channel.UNLIMITED)

    /** Whether an answer is being made. */
    public val answering: Boolean get() = turn.busy

    /** Ends the answer in progress, if any, within one chunk or token. */
    public fun stop() {
        turn.cancelActive()
    }

    /**
     * Drops the vision stages from memory now, after the image in work; null when they are not loaded. The next image loads
     * them again. Waits: not for a main thread.
     *
     * @throws UsageException the session is closed.
     */
    public fun releaseVision(): Release? {
        if (turn.closed) throw UsageException("the session is closed", "open it again")
        return parts.encoder.release()
    }

    /** Cancels what is going on, waits until it has stopped, and frees everything. Closing twice is allowed. */
    override fun close() {
        if (!turn.close()) return
        parts.close()
        bundle.close()
    }

    private fun sampling(chosen: ChatOptions): SamplingOptions {
        val default = manifest.generation
        return SamplingOptions(
            temperature = chosen.temperature ?: default.temperature,
            topK = chosen.topK ?: default.topK,
            topP = chosen.topP ?: default.topP,
            minP = chosen.minP ?: default.minP,
            repetitionPenalty = chosen.repetitionPenalty ?: default.repetitionPenalty,
            seed = chosen.seed,
        )
    }

    private fun figures() = SessionFigures(loadMs, parts.encoder.latestRelease, options.target, backend)

    public companion object {
        private const val MOST_THREADS_PER_PROCESSOR = 4

        /**
         * Opens a bundle (directory or uncompressed zip) and loads one of its variants.
         *
         * @throws BundleException the bundle is incomplete, damaged, unsafe or from a newer schema.
         * @throws UsageException an option outside its range, or no such target.
         * @throws EnvironmentException this machine cannot run it.
         */
        public suspend fun open(path: File, options: SessionOptions): VlmSession {
            var opened: VlmSession? = null
            try {
                return withContext(Dispatchers.IO) {
                    val context = coroutineContext
                    load(path, options) { context.ensureActive() }.also { opened = it }
                }
            } catch (error: CancellationException) {
                // Cancelled on the way back: nobody else knows of it.
                opened?.close()
                throw error
            }
        }

        private fun load(path: File, options: SessionOptions, checkCancelled: () -> Unit): VlmSession {
            val started = System.nanoTime()
            val bundle = options.trace.span("check") { Bundle.open(path, options.verify, options.unpackTo, checkCancelled) }
            try {
                return bundle.named {
                    val variant = bundle.variant(options.engines, options.target)
                    checkOptions(variant, options)
                    val parts = SessionParts.open(bundle, variant, options, checkCancelled)
                    VlmSession(bundle, variant, options, parts, (System.nanoTime() - started) / 1e6)
                }
            } catch (error: Throwable) {
                bundle.close()
                throw error
            }
        }

        private fun checkOptions(variant: VariantSpec, options: SessionOptions) {
            for ((name, value) in listOf(
                "threads" to options.threads,
                "vision_batch" to options.visionBatch,
                "max_length" to options.maxLength,
            )) {
                if (value != null && value < 1) throw UsageException("$name is $value", "it must be 1 or more")
            }
            val processors = Runtime.getRuntime().availableProcessors()
            val most = MOST_THREADS_PER_PROCESSOR * processors
            if (options.threads != null && options.threads > most) {
                throw UsageException(
                    "threads is ${options.threads}",
                    "it must be at most $most on this machine of $processors processors",
                )
            }
            if (options.imageCacheMb < 0) throw UsageException("image_cache_mb is ${options.imageCacheMb}", "it must be 0 or more")
            val fixed = variant.stages.getValue(variant.chain("vision_encoder").first()).inputs[0].size(0) ?: return
            if (options.visionBatch != null && options.visionBatch % fixed != 0) {
                throw UsageException(
                    "vision_batch is ${options.visionBatch}",
                    "this variant is compiled for batches of $fixed; leave it out or take a multiple",
                )
            }
        }
    }
}
