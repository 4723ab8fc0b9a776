package dev.pocketvlm.demo.chat

import android.app.Activity
import android.text.Editable
import android.text.TextWatcher
import android.view.View
import android.view.inputmethod.EditorInfo
import android.widget.EditText
import android.widget.ImageButton
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.session.SessionState
import dev.pocketvlm.demo.ui.ProblemBanner

/** The views of the chat screen: shows the state, and hands what the user does to the view model. */
class ChatScreen(
    private val activity: Activity,
    private val model: ChatViewModel,
    pick: () -> Unit,
    takePhoto: () -> Unit,
    openBundles: () -> Unit,
) {
    private val question: EditText = activity.findViewById(R.id.question)
    private val send: ImageButton = activity.findViewById(R.id.send)
    private val banner = ProblemBanner(activity, model::dismissProblem)
    private val conversation = ConversationView(activity)
    private val empty = EmptyView(activity, pick, takePhoto, openBundles)
    private val strip = AttachmentStrip(activity, model::detach)
    private val timings = TimingsPanel(activity, model::toggleTimings)
    private var shown = ChatState()

    init {
        activity.findViewById<View>(R.id.pick).setOnClickListener { pick() }
        activity.findViewById<View>(R.id.camera).setOnClickListener { takePhoto() }
        send.setOnClickListener { if (shown.answering) model.stop() else ask() }
        // A single line for the keyboard, so that it has a send key; several for the eye.
        question.setHorizontallyScrolling(false)
        question.maxLines = MOST_LINES
        question.setOnEditorActionListener { _, action, _ -> (action == EditorInfo.IME_ACTION_SEND).also { if (it) ask() } }
        question.addTextChangedListener(object : TextWatcher {
            override fun beforeTextChanged(text: CharSequence, start: Int, count: Int, after: Int) = Unit

            override fun onTextChanged(text: CharSequence, start: Int, before: Int, count: Int) = Unit

            override fun afterTextChanged(text: Editable) = showSend()
        })
    }

    fun show(state: ChatState) {
        shown = state
        val ready = state.session as? SessionState.Ready
        activity.actionBar?.subtitle = ready?.let { "${it.name} · ${it.session.variant.target}" }
        banner.show(state.problem)
        empty.show(state)
        conversation.show(state.turns)
        strip.show(state.attachments)
        timings.show(state)
        showSend()
    }

    private fun showSend() {
        send.setImageResource(if (shown.answering) R.drawable.ic_stop else R.drawable.ic_send)
        send.contentDescription = activity.getString(if (shown.answering) R.string.stop else R.string.send)
        send.isEnabled = shown.answering || (shown.canSend && question.text.isNotBlank())
    }

    private fun ask() {
        if (!shown.canSend || question.text.isBlank()) return
        // Cleared first: the state that follows enables the button by what stands there.
        val text = question.text.toString()
        question.text.clear()
        model.send(text)
    }

    private companion object {
        const val MOST_LINES = 5
    }
}
