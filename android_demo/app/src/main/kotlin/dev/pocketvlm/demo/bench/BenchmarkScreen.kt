package dev.pocketvlm.demo.bench

import android.app.Activity
import android.view.View
import android.widget.Button
import android.widget.EditText
import android.widget.ImageView
import android.widget.ProgressBar
import android.widget.TextView
import dev.pocketvlm.bench.BenchmarkSettings
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.session.SessionState
import dev.pocketvlm.demo.ui.ProblemBanner
import dev.pocketvlm.demo.ui.showText
import dev.pocketvlm.demo.ui.showThumbnail
import dev.pocketvlm.demo.ui.visibleIf

/** The views of the benchmark screen. */
class BenchmarkScreen(private val activity: Activity, private val model: BenchmarkViewModel, pick: () -> Unit) {
    private val banner = ProblemBanner(activity, model::dismissProblem)
    private val results = ResultsCard(activity)
    private val run: Button = activity.findViewById(R.id.run)
    private val progress: ProgressBar = activity.findViewById(R.id.progress)
    private val progressText: TextView = activity.findViewById(R.id.progress_text)
    private var shown = BenchmarkState()

    init {
        activity.findViewById<View>(R.id.picture_choose).setOnClickListener { pick() }
        activity.findViewById<View>(R.id.picture_clear).setOnClickListener { model.clearPicture() }
        run.setOnClickListener { if (shown.measurement is Measurement.Running) model.stop() else start() }
    }

    fun show(state: BenchmarkState) {
        announce(shown.measurement, state.measurement)
        shown = state
        val measurement = state.measurement
        banner.show(state.problem)
        showModel(state.session)
        showPicture(state)
        activity.findViewById<View>(R.id.progress_card).visibleIf(measurement is Measurement.Running)
        if (measurement is Measurement.Running) {
            progressText.showText(measurement.next.replaceFirstChar(Char::uppercase))
            progress.max = measurement.total
            progress.progress = measurement.done
        }
        results.show(measurement as? Measurement.Done)
        run.setText(if (measurement is Measurement.Running) R.string.stop_run else R.string.run)
        run.isEnabled = state.session is SessionState.Ready
    }

    private fun showModel(session: SessionState) {
        val ready = session as? SessionState.Ready
        activity.findViewById<TextView>(R.id.benchmark_model).showText(
            if (ready == null) activity.getString(R.string.benchmark_no_model)
            else activity.getString(R.string.benchmark_model, ready.name, ready.session.backend),
        )
    }

    private fun showPicture(state: BenchmarkState) {
        activity.findViewById<ImageView>(R.id.picture_thumbnail).showThumbnail(state.picture)
        activity.findViewById<TextView>(R.id.picture_name)
            .showText(state.picture?.name ?: activity.getString(R.string.picture_none))
        activity.findViewById<View>(R.id.picture_clear).visibleIf(state.picture != null)
    }

    private fun start() {
        val repetitions = number(R.id.repetitions) ?: return
        val promptTokens = number(R.id.prompt_tokens) ?: return
        val newTokens = number(R.id.new_tokens) ?: return
        model.start(BenchmarkSettings(promptTokens = promptTokens, newTokens = newTokens, repetitions = repetitions))
    }

    private fun number(field: Int): Int? {
        val view = activity.findViewById<EditText>(field)
        val value = view.text.toString().toIntOrNull()?.takeIf { it > 0 }
        if (value == null) {
            view.error = activity.getString(R.string.number_wrong)
            view.requestFocus()
        }
        return value
    }

    private fun announce(before: Measurement, now: Measurement) {
        if (before is Measurement.Running && now is Measurement.Done) {
            run.announceForAccessibility(activity.getString(R.string.benchmark_announced))
        }
    }
}
