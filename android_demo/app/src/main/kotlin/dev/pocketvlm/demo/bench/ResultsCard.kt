package dev.pocketvlm.demo.bench

import android.app.Activity
import android.view.View
import android.view.ViewGroup
import android.widget.TextView
import dev.pocketvlm.bench.Figure
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.ui.Figures
import dev.pocketvlm.demo.ui.fill
import dev.pocketvlm.demo.ui.showText
import dev.pocketvlm.demo.ui.visibleIf

/** The figures of a benchmark: a heading per case, a row per figure, under the names that the JSON has. */
class ResultsCard(private val activity: Activity) {
    private val card: View = activity.findViewById(R.id.results_card)
    private val note: TextView = activity.findViewById(R.id.results_note)
    private val rows: ViewGroup = activity.findViewById(R.id.results)
    private val figures = Figures(activity.resources)

    fun show(done: Measurement.Done?) {
        card.visibleIf(done != null)
        if (done == null) return
        val told = activity.getString(R.string.results_note)
        note.showText(if (done.report.emulated) "${activity.getString(R.string.emulated)} $told" else told)
        val lines = done.report.results.flatMap { (case, found) ->
            listOf(Line(case, null)) + found.map { (name, figure) -> Line(name, figure) }
        }
        rows.fill(lines, R.layout.result_row, ::show)
    }

    private fun show(view: View, line: Line) {
        val heading = line.figure == null
        val name = view.findViewById<TextView>(R.id.result_name)
        name.showText(line.name)
        name.setTextAppearance(if (heading) R.style.Text_Section else R.style.Text_Quiet)
        view.findViewById<TextView>(R.id.result_value).showText(line.figure?.let(::show).orEmpty())
    }

    private fun show(figure: Figure): String {
        val median = figures.number(figure.median)
        val deviation = figure.deviation?.takeIf { it > 0 } ?: return median
        return activity.getString(R.string.figure_deviation, median, figures.number(deviation))
    }

    private data class Line(val name: String, val figure: Figure?)
}
