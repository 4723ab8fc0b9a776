package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.image.ImageDecoder
import dev.pocketvlm.runtime.image.ImagePreprocessor
import dev.pocketvlm.runtime.image.ImageSource
import dev.pocketvlm.runtime.tiling.TilePlanner
import dev.pocketvlm.runtime.tiling.TokenArranger
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.util.concurrent.Executors
import java.util.concurrent.TimeUnit

/** When the vision stages leave memory. A new image loads them again. */
public enum class ReleasePolicy {
    /** Never. */
    KEEP,

    /** When no image waits to be encoded. */
    AFTER_ENCODE,

    /** Then, if less than 15% of the machine's memory is available. */
    ON_PRESSURE,
}

/** Resident memory around a release of the vision stages, in MiB; null where the system does not tell. */
public data class Release(val beforeMb: Double?, val afterMb: Double?)

/** Encodes images one after the other on its own thread. */
internal class ImageEncoder(
    private val bundle: Bundle,
    variant: VariantSpec,
    private val vision: VisionPipeline,
    private val decoder: ImageDecoder,
    private val policy: ReleasePolicy,
    cacheBytes: Long,
    private val trace: Trace,
) {
    /** Hash of everything but the picture that shapes its tokens: the rules and the vision stages. */
    val preprocessing: String = preprocessingHash(bundle, variant)

    @Volatile
    var latestRelease: Release? = null
        private set

    private val newline = readNewline(bundle)
    private val cache = ImageCache(cacheBytes)
    private val pool = Executors.newSingleThreadExecutor { work -> Thread(work, "vision").apply { isDaemon = true } }
    private val lock = Any()
    private val pending = LinkedHashSet<EncodedImage>()
    private var working: EncodedImage? = null
    private var closed = false

    /** Queues an image and returns at once. */
    fun encode(source: ImageSource): EncodedImage {
        val image = EncodedImage(preprocessing, ::stopRuns)
        synchronized(lock) {
            if (closed) throw UsageException("the session is closed", "open it again")
            pending += image
            pool.execute { work(image, source) }
        }
        return image
    }

    /** Drops the vision stages from memory, after the image in work; null when they are not loaded. */
    fun release(): Release? {
        if (!vision.loaded) return null
        return trace.span("release") {
            val before = SystemMemory.residentMb()
            vision.release()
            Release(before, SystemMemory.residentMb()).also { latestRelease = it }
        }
    }

    /** Cancels all images and frees the stages. */
    fun close() {
        val waiting = synchronized(lock) {
            closed = true
            pending.toList()
        }
        waiting.forEach(EncodedImage::cancel)
        pool.shutdown()
        while (!pool.awaitTermination(1, TimeUnit.MINUTES)) waiting.forEach(EncodedImage::cancel)
        vision.release()
    }

    private fun stopRuns(image: EncodedImage) {
        synchronized(lock) { if (working === image) vision.cancel() }
    }

    private fun work(image: EncodedImage, source: ImageSource) {
        synchronized(lock) { working = image }
        var result = runCatching { encode(image, source) }
        val idle = synchronized(lock) {
            working = null
            pending -= image
            pending.isEmpty()
        }
        // Before the image is reported as done, so that whoever waited sees the memory released.
        if (idle && shouldRelease()) runCatching { release() }.onFailure { result = Result.failure(it) }
        image.finish(result)
    }

    private fun shouldRelease(): Boolean = when (policy) {
        ReleasePolicy.KEEP -> false
        ReleasePolicy.AFTER_ENCODE -> true
        ReleasePolicy.ON_PRESSURE -> SystemMemory.availableShare()?.let { it < PRESSURE_SHARE } ?: false
    }

    private fun encode(image: EncodedImage, source: ImageSource): VisualTokens {
        val manifest = bundle.manifest
        val start = System.nanoTime()
        image.raiseIfCancelled()
        val picture = trace.span("open image") { decoder.decode(source, manifest.image.maxPixels) }
        val plan = TilePlanner.plan(picture.width, picture.height, manifest.tiling, manifest.imageTokens)
        val key = sha256("$preprocessing:${picture.digest()}".toByteArray())
        image.setPlan(plan)
        cache.get(key)?.let {
            image.wasCached = true
            return it
        }
        image.raiseIfCancelled()
        val tiles = trace.span("cut tiles", "tiles" to plan.encodedTiles) {
            ImagePreprocessor.makeTiles(picture, plan, manifest.tiling, manifest.image, manifest.imageTokens.thumbnailFirst)
        }
        val features = vision.encode(tiles) { image.cancelRequested }
        val tokens = trace.span("arrange tokens", "tokens" to plan.imageTokens) {
            val shape = LongArray(features.shape.size) { features.shape[it].toLong() }
            val values = TokenArranger.arrange(features.floats(), shape, plan, manifest.imageTokens, newline)
            VisualTokens(key, plan.imageTokens, features.shape.last(), values)
        }
        cache.put(tokens)
        image.visionMs = (System.nanoTime() - start) / 1e6
        return tokens
    }

    private companion object {
        /** Below this share of available memory, Android's low-memory killer and Linux' reclaim become busy. */
        const val PRESSURE_SHARE = 0.15

        fun readNewline(bundle: Bundle): FloatArray? {
            val name = bundle.manifest.imageTokens.newline.ifEmpty { return null }
            val content = java.nio.ByteBuffer.wrap(bundle.file(name).readBytes()).order(ByteOrder.LITTLE_ENDIAN)
            val numbers: FloatBuffer = content.asFloatBuffer()
            return FloatArray(numbers.remaining()).also(numbers::get)
        }

        fun preprocessingHash(bundle: Bundle, variant: VariantSpec): String {
            val manifest = bundle.manifest
            val files = listOf(manifest.imageTokens.newline).filter { it.isNotEmpty() } +
                VisionContract.stageNames(variant).map(variant.stages::getValue).flatMap { listOf(it.file) + it.externalData }
            val shaping = listOf(manifest.tiling, manifest.image, manifest.imageTokens, files.map(bundle::sha256))
            return sha256(shaping.toString().toByteArray())
        }
    }
}
