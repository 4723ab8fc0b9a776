package dev.pocketvlm.runtime

import java.io.File
import java.io.IOException

/** Why an answer ended. */
public enum class StopReason { STOP_TOKEN, STOP_STRING, MAX_NEW_TOKENS, CONTEXT_FULL, CANCELLED }

/**
 * Figures of one answer; times in milliseconds, memory in MiB. The same names and meanings as in Python.
 *
 * @property loadMs opening the bundle: checking, loading graphs and tokenizer.
 * @property visionMs sum over the images of the time from picking the image up to its visual tokens; 0 for images whose
 *   tokens came from the image cache, or that an earlier answer has counted.
 * @property tiles tiles of all images, thumbnails included.
 * @property imageTokens visual tokens of all images.
 * @property imageWasCached the images' tokens were at hand when the question came (false without images).
 * @property promptTokens positions of the prompt, visual tokens included.
 * @property kvPrefixReused how many of them were in the KV cache already.
 * @property newTokens tokens of the answer, without the stop token.
 * @property ttftMs from the request to the first text, images and prefill included.
 * @property prefillTokS prompt tokens computed, per second.
 * @property decodeTokS decoder steps per second, sampling and text included, the reader's time not; 0 without a step.
 * @property overheadMsPerToken of a decoder step's time, the part outside the engine: sampling, text, bookkeeping.
 * @property peakRssMb largest resident memory of the process so far; null where the system does not tell.
 * @property rssBeforeReleaseMb resident memory before the latest release of the vision stages; null when there was none.
 * @property rssAfterReleaseMb resident memory after it.
 * @property backendRequested the target that was asked for; null means the first that runs here.
 * @property backendActual the variant's target and engine.
 */
public data class Metrics(
    val loadMs: Double,
    val visionMs: Double,
    val tiles: Int,
    val imageTokens: Int,
    val imageWasCached: Boolean,
    val promptTokens: Int,
    val kvPrefixReused: Int,
    val newTokens: Int,
    val ttftMs: Double,
    val prefillTokS: Double,
    val decodeTokS: Double,
    val overheadMsPerToken: Double,
    val peakRssMb: Double?,
    val rssBeforeReleaseMb: Double?,
    val rssAfterReleaseMb: Double?,
    val stopReason: StopReason,
    val backendRequested: String?,
    val backendActual: String,
) {
    /** The figures by the names that Python's `--json` gives them. */
    public fun toMap(): Map<String, Any?> = linkedMapOf(
        "load_ms" to loadMs,
        "vision_ms" to visionMs,
        "tiles" to tiles,
        "image_tokens" to imageTokens,
        "image_was_cached" to imageWasCached,
        "prompt_tokens" to promptTokens,
        "kv_prefix_reused" to kvPrefixReused,
        "new_tokens" to newTokens,
        "ttft_ms" to ttftMs,
        "prefill_tok_s" to prefillTokS,
        "decode_tok_s" to decodeTokS,
        "overhead_ms_per_token" to overheadMsPerToken,
        "peak_rss_mb" to peakRssMb,
        "rss_before_release_mb" to rssBeforeReleaseMb,
        "rss_after_release_mb" to rssAfterReleaseMb,
        "stop_reason" to stopReason.name.lowercase(),
        "backend_requested" to backendRequested,
        "backend_actual" to backendActual,
    )
}

/** Memory of this process and machine, as Linux and Android tell it. */
public object SystemMemory {
    /** Resident memory of this process now, in MiB; null where the system does not tell. */
    public fun residentMb(): Double? = kibibytes("/proc/self/status", "VmRSS")?.div(1024.0)

    /** Largest resident memory of this process so far, in MiB; null where the system does not tell. */
    public fun peakResidentMb(): Double? = kibibytes("/proc/self/status", "VmHWM")?.div(1024.0)

    /** Share (0 to 1) of the machine's memory that programs could still get; null where the system does not tell. */
    public fun availableShare(): Double? {
        val total = kibibytes("/proc/meminfo", "MemTotal") ?: return null
        val available = kibibytes("/proc/meminfo", "MemAvailable") ?: return null
        return if (total > 0) available.toDouble() / total else null
    }

    private fun kibibytes(file: String, key: String): Long? = try {
        File(file).useLines { lines ->
            lines.firstOrNull { it.startsWith("$key:") }?.split(WHITE_SPACE)?.getOrNull(1)?.toLongOrNull()
        }
    } catch (_: IOException) {
        null
    }

    private val WHITE_SPACE = Regex("\\s+")
}
