package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.sampler.Sampler
import dev.pocketvlm.runtime.sampler.SamplingOptions
import dev.pocketvlm.runtime.tiling.TilePlan
import dev.pocketvlm.runtime.tokenizer.StopStrings
import dev.pocketvlm.runtime.tokenizer.StreamDecoder
import dev.pocketvlm.runtime.tokenizer.Tokenizer
import java.nio.FloatBuffer
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Job
import kotlinx.coroutines.selects.select

/**
 * What every answer of a session works with.
 *
 * @property encode starts the encoding of an image.
 * @property preprocessing of this session, as in [EncodedImage.preprocessing].
 * @property imageTokenId what the repetition penalty sees of an image, as in transformers.
 * @property maxLength most positions of the KV cache that prompt and answer may take.
 * @property figures the session's part of the metrics.
 */
internal class Workshop(
    val decoder: Decoder,
    val prompt: PromptBuilder,
    val tokenizer: Tokenizer,
    val encode: (dev.pocketvlm.runtime.image.ImageSource) -> EncodedImage,
    val preprocessing: String,
    val stopTokenIds: Set<Int>,
    val imageTokenId: Int,
    val maxLength: Int,
    val figures: () -> SessionFigures,
    val trace: Trace,
) {
    /** What each position of the KV cache stands for: a token id, or a [VisualKey]. */
    var resident: List<Any> = emptyList()
}

/** The part of [Metrics] that is the session's, not the answer's. */
internal class SessionFigures(
    val loadMs: Double,
    val release: Release?,
    val backendRequested: String?,
    val backendActual: String,
)

/** One answer in the making: prompt, prefill, sampling, text, figures. [run] is for one thread; [cancel] may be called from any. */
internal class Answer(
    private val workshop: Workshop,
    private val messages: List<Message>,
    private val maxNewTokens: Int,
    private val sampling: SamplingOptions,
    stop: List<String>,
) {
    init {
        if (maxNewTokens < 1) throw UsageException("max_new_tokens is $maxNewTokens", "it must be 1 or more")
    }

    private val start = System.nanoTime()
    private val stopStrings = StopStrings(stop)
    private val cancelled = CompletableDeferred<Unit>()
    private val text = StringBuilder()
    private val tokenIds = ArrayList<Int>()
    private var images = emptyList<EncodedImage>()
    private var plans = emptyList<TilePlan>()
    private var imagesWereDone = false
    private var promptTokens = 0
    private var reused = 0
    private var computed = 0
    private var prefillSeconds = 0.0
    private var firstText: Long? = null
    private val decoding = Stopwatch()
    private var decodeEngineSeconds = 0.0
    private var steps = 0
    private lateinit var emit: (ChatEvent) -> Unit

    /** Lets [run] end as soon as it notices; the engine's run in progress is the caller's to stop. */
    fun cancel() {
        cancelled.complete(Unit)
    }

    /**
     * Hands every event to [emit].
     *
     * @throws ContextLengthException the prompt does not fit; nothing of it has been computed.
     * @throws PocketVlmException the messages or an image cannot be used.
     */
    suspend fun run(emit: (ChatEvent) -> Unit) {
        this.emit = emit
        val reason = try {
            generate()
        } catch (error: CancelledException) {
            if (!isCancelled()) throw error
            StopReason.CANCELLED
        }
        emit(ChatEvent.Finished(text.toString(), tokenIds.toList(), plans, measure(reason)))
    }

    private fun isCancelled(): Boolean = cancelled.isCompleted

    private suspend fun generate(): StopReason {
        val prompt = workshop.trace.span("prompt") { workshop.prompt.encode(messages) }
        val rows = rowsOf(prompt)
        try {
            return decode(rows, prefill(rows))
        } finally {
            workshop.resident = (rows.keys + tokenIds).take(workshop.decoder.length)
        }
    }

    private suspend fun rowsOf(prompt: List<PromptPart>): PromptRows {
        val own = ArrayList<EncodedImage>()
        try {
            images = messages.flatMap { it.parts }.filter { it.isImage }.map { part ->
                when (part) {
                    is Part.Encoded -> part.image.also(::checkOwner)
                    is Part.Picture -> workshop.encode(part.source).also(own::add)
                    is Part.Text -> error("not an image")
                }
            }
            imagesWereDone = images.all { it.done }
            for (image in images) waitFor(image.planJob)
            plans = images.map { it.plan() }
            emit(ChatEvent.Planned(plans))
            checkLength(prompt)
            for (image in images) waitFor(image.job)
            return PromptRows(prompt, images.map { it.tokens() }, workshop.decoder)
        } finally {
            own.forEach(EncodedImage::cancel)
        }
    }

    private fun checkOwner(image: EncodedImage) {
        if (image.preprocessing != workshop.preprocessing) {
            throw UsageException("an image was encoded by a session of another bundle", "encode it with this session")
        }
    }

    private suspend fun waitFor(work: Job) {
        select {
            cancelled.onAwait { throw CancelledException("the answer was cancelled") }
            work.onJoin {}
        }
    }

    private fun checkLength(prompt: List<PromptPart>) {
        promptTokens = prompt.sumOf {
            when (it) {
                is PromptPart.Tokens -> it.ids.size
                is PromptPart.Image -> plans[it.index].imageTokens
            }
        }
        // The first token of an answer needs no place of its own: the prompt's last position gives it.
        val over = promptTokens - workshop.maxLength
        if (over > 0) {
            throw ContextLengthException(
                "the prompt is $over tokens too long: $promptTokens (${plans.sumOf { it.imageTokens }} of them for images) do " +
                    "not fit into ${workshop.maxLength}",
                "shorten it, drop turns or images, or export with a larger --max-seq-len if the model allows more",
            )
        }
    }

    private fun prefill(rows: PromptRows): FloatBuffer {
        val decoder = workshop.decoder
        reused = commonPrefix(workshop.resident, rows.keys.subList(0, rows.size - 1))
        val begin = System.nanoTime()
        try {
            return decoder.prefill(rows, reused, ::isCancelled)
        } finally {
            prefillSeconds = (System.nanoTime() - begin) * 1e-9
            computed = decoder.length - reused
        }
    }

    private fun decode(rows: PromptRows, first: FloatBuffer): StopReason {
        val decoder = workshop.decoder
        val stream = StreamDecoder(workshop.tokenizer)
        val sampler = Sampler(sampling, rows.keys.map { it as? Int ?: workshop.imageTokenId }.toSet())
        val prefilled = decoder.engineSeconds
        var token = sampler.sample(first)
        var reason: StopReason?
        try {
            while (true) {
                reason = reasonBefore(token)
                if (reason != null) break
                tokenIds += token
                val shown = stopStrings.push(stream.push(token))
                show(shown.text)
                if (shown.stopped) return StopReason.STOP_STRING
                reason = reasonAfter()
                if (reason != null) break
                // From here to the text of the step's token; the first token came from the prefill.
                decoding.start()
                token = sampler.sample(decoder.step(token, ::isCancelled))
                steps++
            }
        } finally {
            decoding.stop()
            decodeEngineSeconds = decoder.engineSeconds - prefilled
        }
        val rest = stopStrings.push(stream.finish())
        show(if (rest.stopped) rest.text else rest.text + stopStrings.finish())
        return if (rest.stopped) StopReason.STOP_STRING else reason
    }

    private fun reasonBefore(token: Int): StopReason? = when {
        isCancelled() -> StopReason.CANCELLED
        token in workshop.stopTokenIds -> StopReason.STOP_TOKEN
        else -> null
    }

    private fun reasonAfter(): StopReason? = when {
        isCancelled() -> StopReason.CANCELLED
        tokenIds.size >= maxNewTokens -> StopReason.MAX_NEW_TOKENS
        workshop.decoder.length >= workshop.maxLength -> StopReason.CONTEXT_FULL
        else -> null
    }

    private fun show(piece: String) {
        if (piece.isEmpty()) return
        if (firstText == null) firstText = System.nanoTime()
        text.append(piece)
        decoding.stop()
        emit(ChatEvent.Text(piece))
        decoding.start()
    }

    private fun measure(reason: StopReason): Metrics {
        val figures = workshop.figures()
        val first = firstText ?: System.nanoTime()
        val overhead = decoding.seconds - decodeEngineSeconds
        return Metrics(
            loadMs = figures.loadMs,
            visionMs = images.sumOf { it.charge() },
            tiles = plans.sumOf { it.encodedTiles },
            imageTokens = plans.sumOf { it.imageTokens },
            imageWasCached = images.isNotEmpty() && (imagesWereDone || images.all { it.wasCached }),
            promptTokens = promptTokens,
            kvPrefixReused = reused,
            newTokens = tokenIds.size,
            ttftMs = (first - start) / 1e6,
            prefillTokS = if (prefillSeconds > 0) computed / prefillSeconds else 0.0,
            decodeTokS = if (steps > 0) steps / decoding.seconds else 0.0,
            overheadMsPerToken = if (steps > 0) overhead * 1000 / steps else 0.0,
            peakRssMb = SystemMemory.peakResidentMb(),
            rssBeforeReleaseMb = figures.release?.beforeMb,
            rssAfterReleaseMb = figures.release?.afterMb,
            stopReason = reason,
            backendRequested = figures.backendRequested,
            backendActual = figures.backendActual,
        )
    }

    /** Seconds between [start] and [stop], over several such spans. Both may come twice. */
    private class Stopwatch {
        var seconds = 0.0
            private set
        private var since: Long? = null

        fun start() {
            if (since == null) since = System.nanoTime()
        }

        fun stop() {
            since?.let { seconds += (System.nanoTime() - it) * 1e-9 }
            since = null
        }
    }
}
