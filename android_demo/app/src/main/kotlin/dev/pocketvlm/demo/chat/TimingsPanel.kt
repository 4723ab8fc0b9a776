package dev.pocketvlm.demo.chat

import android.app.Activity
import android.view.View
import android.widget.GridLayout
import android.widget.ImageView
import android.widget.TextView
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.session.SessionState
import dev.pocketvlm.demo.ui.Figures
import dev.pocketvlm.demo.ui.fill
import dev.pocketvlm.demo.ui.showText
import dev.pocketvlm.demo.ui.visibleIf
import dev.pocketvlm.runtime.Metrics

/** Figures of the latest answer, of the process and of the device, and what the model really runs on. */
class TimingsPanel(private val activity: Activity, toggle: () -> Unit) {
    private val panel: View = activity.findViewById(R.id.timings)
    private val header: View = activity.findViewById(R.id.timings_header)
    private val summary: TextView = activity.findViewById(R.id.timings_summary)
    private val arrow: ImageView = activity.findViewById(R.id.timings_arrow)
    private val body: View = activity.findViewById(R.id.timings_body)
    private val grid: GridLayout = activity.findViewById(R.id.timings_grid)
    private val backend: TextView = activity.findViewById(R.id.timings_backend)
    private val figures = Figures(activity.resources)
    private val beside = activity.resources.getBoolean(R.bool.timings_beside)

    init {
        header.setOnClickListener { toggle() }
        header.isClickable = !beside
        arrow.visibleIf(!beside)
        // Large type needs wider columns.
        val largeType = activity.resources.configuration.fontScale > LARGE_TYPE
        grid.columnCount = if (largeType) 2 else activity.resources.getInteger(R.integer.timing_columns)
    }

    fun show(state: ChatState) {
        val ready = state.session as? SessionState.Ready
        panel.visibleIf(ready != null)
        if (ready == null) return
        val unfolded = beside || state.timingsUnfolded
        body.visibleIf(unfolded)
        arrow.setImageResource(if (unfolded) R.drawable.ic_expand else R.drawable.ic_collapse)
        val metrics = state.timings?.metrics
        summary.showText(metrics?.let(::summarise) ?: activity.getString(R.string.timings_none))
        // Invisible, not gone: the arrow stays at the end.
        summary.visibility = if (unfolded) View.INVISIBLE else View.VISIBLE
        if (!beside) header.contentDescription = describeHeader(unfolded)
        grid.fill(rows(state.timings), R.layout.timing) { view, (name, value) ->
            view.findViewById<TextView>(R.id.timing_name).showText(activity.getString(name))
            view.findViewById<TextView>(R.id.timing_value).showText(value)
            view.contentDescription = "${activity.getString(name)}: $value"
        }
        backend.showText(backendLines(ready, metrics))
    }

    private fun describeHeader(unfolded: Boolean): String =
        if (unfolded) activity.getString(R.string.hide_timings)
        else "${activity.getString(R.string.show_timings)}: ${summary.text}"

    private fun summarise(metrics: Metrics): String =
        activity.getString(R.string.timings_summary, figures.duration(metrics.ttftMs), figures.number(metrics.decodeTokS))

    private fun rows(timings: Timings?): List<Pair<Int, String>> {
        val metrics = timings?.metrics
        fun known(show: (Metrics) -> String) = metrics?.let(show) ?: activity.getString(R.string.not_known)
        return listOf(
            R.string.timing_tiles to known { figures.count(it.tiles) },
            R.string.timing_image_tokens to known { figures.count(it.imageTokens) },
            R.string.timing_vision to known { figures.duration(it.visionMs) },
            R.string.timing_ttft to known { figures.duration(it.ttftMs) },
            R.string.timing_prefill to known { figures.speed(it.prefillTokS) },
            R.string.timing_decode to known { figures.speed(it.decodeTokS) },
            R.string.timing_reused to known(::reused),
            R.string.timing_pss to (timings?.let { figures.megabytes(it.pssMb) } ?: activity.getString(R.string.not_known)),
            R.string.timing_thermal to thermal(timings),
        )
    }

    private fun reused(metrics: Metrics): String =
        activity.getString(R.string.reused_of, figures.count(metrics.kvPrefixReused), figures.count(metrics.promptTokens))

    private fun thermal(timings: Timings?): String =
        timings?.thermal?.let { activity.resources.getStringArray(R.array.thermal)[it.ordinal] }
            ?: activity.getString(R.string.not_known)

    private fun backendLines(ready: SessionState.Ready, metrics: Metrics?): String {
        val actual = metrics?.backendActual ?: ready.session.backend
        val requested = metrics?.backendRequested ?: activity.getString(R.string.backend_automatic)
        val passedOver = ready.passedOver.mapNotNull { note ->
            note.obstacle?.let {
                activity.getString(R.string.passed_over, it.message(activity.resources), it.hint(activity.resources))
            }
        }
        return (listOf(activity.getString(R.string.backend_line, actual, requested)) + passedOver).joinToString("\n")
    }

    private companion object {
        const val LARGE_TYPE = 1.3f
    }
}
