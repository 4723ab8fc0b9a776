package dev.pocketvlm.demo.chat

import android.app.Activity
import android.view.View
import android.widget.Button
import android.widget.ImageView
import android.widget.TextView
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.session.SessionState
import dev.pocketvlm.demo.ui.showText
import dev.pocketvlm.demo.ui.visibleIf

/** What stands where no conversation is: what to do first. */
class EmptyView(
    private val activity: Activity,
    private val pick: () -> Unit,
    takePhoto: () -> Unit,
    private val openBundles: () -> Unit,
) {
    private val view: View = activity.findViewById(R.id.empty)
    private val icon: ImageView = activity.findViewById(R.id.empty_icon)
    private val progress: View = activity.findViewById(R.id.empty_progress)
    private val title: TextView = activity.findViewById(R.id.empty_title)
    private val text: TextView = activity.findViewById(R.id.empty_text)
    private val action: Button = activity.findViewById(R.id.empty_action)
    private val second: Button = activity.findViewById(R.id.empty_second)

    init {
        second.setText(R.string.take_photo)
        second.setOnClickListener { takePhoto() }
    }

    fun show(state: ChatState) {
        view.visibleIf(state.turns.isEmpty())
        val opening = state.session is SessionState.Opening
        progress.visibleIf(opening)
        icon.visibleIf(!opening)
        when (val session = state.session) {
            is SessionState.None -> {
                show(R.drawable.ic_bundle, activity.getString(R.string.no_bundle_title), activity.getText(R.string.no_bundle_text))
                offer(R.string.import_bundle, openBundles)
            }
            is SessionState.Failed -> {
                val problem = session.problem
                val lines = listOf(problem.message(activity.resources), problem.hint(activity.resources))
                val told = lines.filter(String::isNotEmpty).joinToString("\n\n")
                show(R.drawable.ic_warning, activity.getString(R.string.failed_title, session.name), told)
                offer(R.string.bundles, openBundles)
            }
            is SessionState.Opening -> {
                val loading = activity.getString(R.string.opening_title, session.name)
                show(R.drawable.ic_bundle, loading, activity.getText(R.string.opening_text))
                offerPictures(state)
            }
            is SessionState.Ready -> {
                show(R.drawable.ic_picture, activity.getString(R.string.ready_title), activity.getText(R.string.ready_text))
                offerPictures(state)
            }
        }
    }

    private fun show(image: Int, heading: String, told: CharSequence) {
        icon.setImageResource(image)
        title.showText(heading)
        text.showText(told)
    }

    private fun offer(label: Int, work: () -> Unit) {
        action.setText(label)
        action.setOnClickListener { work() }
        action.visibleIf(true)
        second.visibleIf(false)
    }

    private fun offerPictures(state: ChatState) {
        offer(R.string.choose_picture, pick)
        action.visibleIf(state.attachments.isEmpty())
        second.visibleIf(state.attachments.isEmpty())
    }
}
