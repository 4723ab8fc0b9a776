package dev.pocketvlm.bench

import dev.pocketvlm.runtime.Metrics
import dev.pocketvlm.runtime.POCKETVLM_VERSION
import dev.pocketvlm.runtime.VlmSession
import dev.pocketvlm.runtime.jsonText
import kotlin.math.sqrt

/** Median, and sample standard deviation of more than one run. */
public data class Figure(val median: Double, val deviation: Double?)

/**
 * What a benchmark found.
 *
 * @property runs the metrics of the measured runs, by case.
 */
public class BenchmarkReport internal constructor(
    session: VlmSession,
    private val settings: BenchmarkSettings,
    public val runs: Map<String, List<Metrics>>,
) {
    private val model = session.manifest.model.name
    private val variant = session.variant.name
    private val backend = session.backend
    private val stages = session.stageEngines
    private val onnxRuntime = session.engineVersion

    /** Whether a graph runs on an emulation of its device, which says nothing about a phone. */
    public val emulated: Boolean = stages.values.any { it.endsWith(", emulated") }

    /** Every figure that the system tells, by case and by name. */
    public val results: Map<String, Map<String, Figure>> = runs.mapValues { (_, found) -> summarise(found) }

    /** The object that `pocketvlm bench --json` prints, with what ran it. */
    public fun toJson(): String = jsonText(
        linkedMapOf(
            "model" to model,
            "variant" to variant,
            "backend_actual" to backend,
            "stages" to stages,
            "emulated" to emulated,
            "settings" to linkedMapOf(
                "prompt_tokens" to settings.promptTokens,
                "new_tokens" to settings.newTokens,
                "repetitions" to settings.repetitions,
                "threads" to settings.threads,
                "image" to settings.image,
            ),
            "note" to if (emulated) "$EMULATED; $EXCLUDED" else EXCLUDED,
            "results" to results.mapValues { (_, figures) ->
                figures.mapValues { (_, figure) -> linkedMapOf("median" to figure.median, "sd" to figure.deviation) }
            },
            "runtime" to linkedMapOf("name" to "kotlin", "version" to POCKETVLM_VERSION, "onnxruntime" to onnxRuntime),
        ),
    )

    private companion object {
        val MEASURED = listOf(
            "load_ms", "vision_ms", "tiles", "image_tokens", "prompt_tokens", "new_tokens", "ttft_ms", "prefill_tok_s",
            "decode_tok_s", "overhead_ms_per_token", "peak_rss_mb",
        )
        const val EXCLUDED = "load_ms and one run that warms up are not part of the other figures"
        const val EMULATED = "emulated on this computer: says nothing about a phone"

        fun summarise(runs: List<Metrics>): Map<String, Figure> {
            val maps = runs.map { it.toMap() }
            return MEASURED.associateWith { name -> maps.mapNotNull { (it[name] as Number?)?.toDouble() } }
                .filterValues { it.isNotEmpty() }
                .mapValues { (_, values) -> Figure(median(values), deviation(values)) }
        }

        fun median(values: List<Double>): Double {
            val sorted = values.sorted()
            val middle = sorted.size / 2
            return if (sorted.size % 2 == 1) sorted[middle] else (sorted[middle - 1] + sorted[middle]) / 2
        }

        fun deviation(values: List<Double>): Double? {
            if (values.size < 2) return null
            val mean = values.average()
            return sqrt(values.sumOf { (it - mean) * (it - mean) } / (values.size - 1))
        }
    }
}
