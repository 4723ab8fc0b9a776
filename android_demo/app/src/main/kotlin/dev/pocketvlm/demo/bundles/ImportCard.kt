package dev.pocketvlm.demo.bundles

import android.app.Activity
import android.text.format.Formatter
import android.view.View
import android.widget.Button
import android.widget.ProgressBar
import android.widget.TextView
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.ui.showText
import dev.pocketvlm.demo.ui.visibleIf

/** The import in progress, or how the latest one went. */
class ImportCard(private val activity: Activity, private val cancel: () -> Unit, private val acknowledge: () -> Unit) {
    private val card: View = activity.findViewById(R.id.import_card)
    private val title: TextView = activity.findViewById(R.id.import_title)
    private val step: TextView = activity.findViewById(R.id.import_step)
    private val progress: ProgressBar = activity.findViewById(R.id.import_progress)
    private val button: Button = activity.findViewById(R.id.import_button)

    fun show(state: ImportState) {
        card.visibleIf(state !is ImportState.Idle)
        when (state) {
            is ImportState.Idle -> Unit
            is ImportState.Running -> showRunning(state)
            is ImportState.Done -> showOutcome(activity.getString(R.string.import_done, state.name), "")
            is ImportState.Failed ->
                showOutcome(state.problem.message(activity.resources), state.problem.hint(activity.resources))
        }
    }

    private fun showRunning(state: ImportState.Running) {
        title.showText(activity.getString(R.string.importing, state.name))
        step.showText(stepText(state.step))
        val copying = state.step as? ImportStep.Copying
        val total = copying?.total?.takeIf { it > 0 }
        progress.visibleIf(true)
        progress.isIndeterminate = total == null
        if (total != null) progress.progress = (copying.bytes * progress.max / total).toInt()
        button.setText(R.string.cancel)
        button.contentDescription = activity.getString(R.string.cancel_import)
        button.setOnClickListener { cancel() }
    }

    private fun stepText(step: ImportStep): String = when (step) {
        is ImportStep.Copying -> {
            val copied = Formatter.formatShortFileSize(activity, step.bytes)
            step.total?.let { activity.getString(R.string.import_copying, copied, Formatter.formatShortFileSize(activity, it)) }
                ?: activity.getString(R.string.import_copying_unknown, copied)
        }
        is ImportStep.Verifying -> activity.getString(R.string.import_verifying)
        is ImportStep.Installing -> activity.getString(R.string.import_installing)
    }

    private fun showOutcome(heading: String, told: String) {
        title.showText(heading)
        step.showText(told)
        progress.visibleIf(false)
        button.setText(R.string.dismiss)
        button.contentDescription = null
        button.setOnClickListener { acknowledge() }
    }
}
