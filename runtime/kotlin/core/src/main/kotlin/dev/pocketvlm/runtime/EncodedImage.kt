package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.tiling.TilePlan
import java.util.concurrent.atomic.AtomicBoolean
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Job

/**
 * An image on its way to visual tokens. Made by [VlmSession.encode]; may be used in any number of messages of that session.
 */
public class EncodedImage internal constructor(
    internal val preprocessing: String,
    private val stopRuns: (EncodedImage) -> Unit,
) {
    // Without a parent: who waits for a result does not own the work.
    private val planned = CompletableDeferred<TilePlan>()
    private val encoded = CompletableDeferred<VisualTokens>()
    private val charged = AtomicBoolean(false)

    @Volatile
    internal var cancelRequested: Boolean = false
        private set

    /** Whether the tokens came from the session's cache. */
    @Volatile
    public var wasCached: Boolean = false
        internal set

    /** Milliseconds that the encoding took; 0 until it has ended, and for images from the cache. */
    @Volatile
    public var visionMs: Double = 0.0
        internal set

    /** Whether the work has ended, well or not. */
    public val done: Boolean get() = encoded.isCompleted

    /**
     * How the image is cut; waits until it has been opened.
     *
     * @throws ImageException the image cannot be used.
     * @throws CancelledException the work was cancelled before.
     */
    public suspend fun plan(): TilePlan = planned.await()

    /**
     * Waits for the end of the work.
     *
     * @throws PocketVlmException what stopped the work.
     */
    public suspend fun await() {
        encoded.await()
    }

    /** Stops the work between two batches or, where the engine can, within one. After its end, no effect. */
    public fun cancel() {
        if (encoded.isCompleted) return
        cancelRequested = true
        stopRuns(this)
    }

    internal suspend fun tokens(): VisualTokens = encoded.await()

    /** Milliseconds that the encoding took, to the first answer that asks after its end; 0 to others. */
    internal fun charge(): Double = if (done && charged.compareAndSet(false, true)) visionMs else 0.0

    internal fun setPlan(plan: TilePlan) {
        planned.complete(plan)
    }

    internal fun finish(result: Result<VisualTokens>) {
        result.onSuccess(encoded::complete).onFailure {
            planned.completeExceptionally(it)
            encoded.completeExceptionally(it)
        }
    }

    internal fun raiseIfCancelled() {
        if (cancelRequested) throw CancelledException("the image encoding was cancelled")
    }

    internal val job: Job get() = encoded

    internal val planJob: Job get() = planned
}

/**
 * Visual tokens of one image in the order in which the prompt holds them.
 *
 * @property key equal for equal pixels, rules and vision stages.
 * @property values float32 [count, size].
 */
internal class VisualTokens(val key: String, val count: Int, val size: Int, val values: FloatArray) {
    val bytes: Long get() = values.size * 4L
}

/** Visual tokens by image key; the least recently used ones go when the sum exceeds [maxBytes]. Thread-safe. */
internal class ImageCache(private val maxBytes: Long) {
    private val items = LinkedHashMap<String, VisualTokens>(16, 0.75f, true)
    private var bytes = 0L

    @Synchronized
    fun get(key: String): VisualTokens? = items[key]

    /** Keeps [tokens], unless they alone exceed the limit. */
    @Synchronized
    fun put(tokens: VisualTokens) {
        if (tokens.key in items || tokens.bytes > maxBytes) return
        items[tokens.key] = tokens
        bytes += tokens.bytes
        val oldest = items.values.iterator()
        while (bytes > maxBytes) {
            bytes -= oldest.next().bytes
            oldest.remove()
        }
    }
}
