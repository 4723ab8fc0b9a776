package dev.pocketvlm.demo.ui

import android.app.Activity
import android.view.View
import android.widget.TextView
import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.R

/** The banner that tells what went wrong, with its hint. It is a live region: screen readers read it as it appears. */
class ProblemBanner(activity: Activity, dismissed: () -> Unit) {
    private val banner: View = activity.findViewById(R.id.problem)
    private val message: TextView = activity.findViewById(R.id.problem_message)
    private val hint: TextView = activity.findViewById(R.id.problem_hint)

    init {
        activity.findViewById<View>(R.id.problem_dismiss).setOnClickListener { dismissed() }
    }

    fun show(problem: Problem?) {
        banner.visibleIf(problem != null)
        if (problem == null) return
        message.text = problem.message(banner.resources)
        hint.showText(problem.hint(banner.resources))
    }
}
