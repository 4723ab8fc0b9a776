package dev.pocketvlm.demo.chat

import android.app.Activity
import android.view.View
import android.view.ViewGroup
import android.widget.ImageView
import android.widget.ScrollView
import android.widget.TextView
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.ui.Figures
import dev.pocketvlm.demo.ui.fill
import dev.pocketvlm.demo.ui.showText
import dev.pocketvlm.demo.ui.showThumbnail
import dev.pocketvlm.demo.ui.visibleIf
import dev.pocketvlm.runtime.Metrics
import dev.pocketvlm.runtime.StopReason

/** The turns of the conversation, the latest in sight. */
class ConversationView(private val activity: Activity) {
    private val scroll: ScrollView = activity.findViewById(R.id.conversation_scroll)
    private val list: ViewGroup = activity.findViewById(R.id.conversation)
    private val figures = Figures(activity.resources)
    private var shown: List<ChatTurn> = emptyList()
    private var follow = true

    init {
        // Who has scrolled up to read is left there until the next question.
        scroll.setOnScrollChangeListener { _, _, y, _, before ->
            follow = !scroll.canScrollVertically(1) || (follow && y >= before)
        }
        // When the new height is known. Not by fullScroll, which would take the focus from the question.
        list.addOnLayoutChangeListener { _, _, _, _, _, _, _, _, _ -> if (follow) scroll.post { scroll.scrollTo(0, list.height) } }
    }

    fun show(turns: List<ChatTurn>) {
        if (turns === shown) return
        val before = shown
        shown = turns
        if (turns.size != before.size) follow = true
        var index = 0
        list.fill(turns, R.layout.turn) { view, turn ->
            // A piece of the answer changes the last turn alone.
            if (turn !== before.getOrNull(index++)) show(view, turn)
        }
        announce(before, turns)
    }

    private fun show(view: View, turn: ChatTurn) {
        val pictures = view.findViewById<ViewGroup>(R.id.turn_pictures)
        pictures.visibleIf(turn.attachments.isNotEmpty())
        pictures.fill(turn.attachments, R.layout.picture) { image, item -> (image as ImageView).showThumbnail(item.picture) }
        val question = view.findViewById<TextView>(R.id.turn_question)
        question.showText(turn.question)
        question.contentDescription = activity.getString(R.string.you_said, turn.question)
        val answer = turn.answer
        view.findViewById<View>(R.id.turn_waiting).visibleIf(answer is AnswerState.Waiting)
        val waiting = if (turn.attachments.any { it.encoding !is Encoding.Done }) R.string.waiting_picture else R.string.waiting
        view.findViewById<TextView>(R.id.turn_waiting_text).setText(waiting)
        view.findViewById<TextView>(R.id.turn_answer).showText(answer.text)
        view.findViewById<TextView>(R.id.turn_figures).showText(if (answer is AnswerState.Finished) summary(answer) else "")
        showProblem(view, answer as? AnswerState.Failed)
    }

    private fun showProblem(view: View, failed: AnswerState.Failed?) {
        view.findViewById<View>(R.id.turn_problem).visibleIf(failed != null)
        if (failed == null) return
        view.findViewById<TextView>(R.id.turn_problem_message).showText(failed.problem.message(activity.resources))
        view.findViewById<TextView>(R.id.turn_problem_hint).showText(failed.problem.hint(activity.resources))
    }

    private fun summary(answer: AnswerState.Finished): String {
        val metrics = answer.metrics
        if (answer.text.isEmpty() && metrics.stopReason == StopReason.CANCELLED) return activity.getString(R.string.nothing_said)
        return listOfNotNull(ending(metrics.stopReason)?.let(activity::getString), speeds(metrics)).joinToString(" · ")
    }

    private fun ending(reason: StopReason): Int? = when (reason) {
        StopReason.CANCELLED -> R.string.stopped
        StopReason.CONTEXT_FULL -> R.string.context_full
        StopReason.MAX_NEW_TOKENS -> R.string.length_reached
        StopReason.STOP_TOKEN, StopReason.STOP_STRING -> null
    }

    private fun speeds(metrics: Metrics): String {
        val tokens = figures.tokens(metrics.newTokens)
        val first = figures.duration(metrics.ttftMs)
        if (metrics.decodeTokS == 0.0) return activity.getString(R.string.answer_figures_short, tokens, first)
        return activity.getString(R.string.answer_figures, tokens, first, figures.number(metrics.decodeTokS))
    }

    /** The answer as a whole when it is complete: read out piece by piece nobody could follow it. */
    private fun announce(before: List<ChatTurn>, turns: List<ChatTurn>) {
        val turn = turns.lastOrNull() ?: return
        val earlier = before.find { it.id == turn.id }?.answer
        if (earlier !is AnswerState.Waiting && earlier !is AnswerState.Streaming) return
        when (val answer = turn.answer) {
            is AnswerState.Finished -> scroll.announceForAccessibility(activity.getString(R.string.answer_announced, answer.text))
            is AnswerState.Failed -> scroll.announceForAccessibility(answer.problem.message(activity.resources))
            is AnswerState.Waiting, is AnswerState.Streaming -> Unit
        }
    }
}
