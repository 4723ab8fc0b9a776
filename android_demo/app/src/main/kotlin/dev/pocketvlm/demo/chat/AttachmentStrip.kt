package dev.pocketvlm.demo.chat

import android.app.Activity
import android.view.View
import android.view.ViewGroup
import android.widget.ImageView
import android.widget.TextView
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.ui.Figures
import dev.pocketvlm.demo.ui.fill
import dev.pocketvlm.demo.ui.showText
import dev.pocketvlm.demo.ui.showThumbnail
import dev.pocketvlm.demo.ui.visibleIf
import dev.pocketvlm.runtime.tiling.TilePlan

/** The pictures of the next question: how each is cut, how far its encoding is, and a button that takes it away. */
class AttachmentStrip(private val activity: Activity, private val remove: (Long) -> Unit) {
    private val scroll: View = activity.findViewById(R.id.attachments_scroll)
    private val strip: ViewGroup = activity.findViewById(R.id.attachments)
    private val figures = Figures(activity.resources)

    fun show(attachments: List<Attachment>) {
        scroll.visibleIf(attachments.isNotEmpty())
        var number = 0
        strip.fill(attachments, R.layout.attachment) { view, attachment -> show(view, attachment, ++number) }
    }

    private fun show(view: View, attachment: Attachment, number: Int) {
        val encoding = attachment.encoding
        val state = stateText(encoding)
        val plan = planText(encoding)
        val told = listOf(state, plan).filter(String::isNotEmpty).joinToString()
        view.findViewById<ImageView>(R.id.attachment_thumbnail).showThumbnail(attachment.picture)
        view.findViewById<TextView>(R.id.attachment_state).showText(state)
        view.findViewById<TextView>(R.id.attachment_plan).showText(plan)
        view.findViewById<View>(R.id.attachment_summary).contentDescription =
            activity.getString(R.string.attachment_description, number, told)
        // Invisible, not gone: the card keeps its height when the encoding ends.
        view.findViewById<View>(R.id.attachment_progress).visibility =
            if (encoding is Encoding.Done) View.INVISIBLE else View.VISIBLE
        val button = view.findViewById<View>(R.id.attachment_remove)
        button.contentDescription = activity.getString(R.string.remove_picture, number)
        button.setOnClickListener { remove(attachment.id) }
    }

    private fun stateText(encoding: Encoding): String = when (encoding) {
        is Encoding.Waiting -> activity.getString(R.string.encoding_waiting)
        is Encoding.Working ->
            activity.getString(if (encoding.plan == null) R.string.encoding_opening else R.string.encoding_working)
        is Encoding.Done -> encoding.milliseconds?.let { activity.getString(R.string.encoding_done, figures.duration(it)) }
            ?: activity.getString(R.string.encoding_cached)
    }

    private fun planText(encoding: Encoding): String = when (encoding) {
        is Encoding.Waiting -> ""
        is Encoding.Working -> encoding.plan?.let(::planText).orEmpty()
        is Encoding.Done -> planText(encoding.plan)
    }

    private fun planText(plan: TilePlan): String =
        activity.getString(R.string.plan_tiles, figures.tiles(plan.encodedTiles), figures.tokens(plan.imageTokens))
}
