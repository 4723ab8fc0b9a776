package dev.pocketvlm.demo.chat

import android.net.Uri
import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.ViewModel
import dev.pocketvlm.demo.device.Device
import dev.pocketvlm.demo.images.PictureReader
import dev.pocketvlm.demo.reporting
import dev.pocketvlm.demo.session.SessionHolder
import dev.pocketvlm.demo.session.SessionState
import dev.pocketvlm.runtime.ChatEvent
import dev.pocketvlm.runtime.Metrics
import dev.pocketvlm.runtime.VlmSession
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/** A conversation with the model in memory. Another model begins another conversation. Main thread only. */
class ChatViewModel(private val sessions: SessionHolder, reader: PictureReader, private val device: Device) : ViewModel() {
    private val states = MutableStateFlow(ChatState(session = sessions.state.value))
    private val attachments = Attachments(scope, reader, ::report)
    private var answer: Job? = null
    private var asked = 0L

    val state: StateFlow<ChatState> = states.asStateFlow()

    init {
        scope.launch { attachments.items.collect { items -> states.update { it.copy(attachments = items) } } }
        scope.launch { sessions.state.collect(::changeSession) }
    }

    /** Attaches pictures to the next question; they are encoded while it is being typed. */
    fun attach(pictures: List<Uri>) {
        dismissProblem()
        pictures.forEach(attachments::add)
    }

    fun detach(id: Long) = attachments.remove(id)

    /** Asks. The pictures need not be encoded yet. Does nothing without a question, a session, or while another is answered. */
    fun send(question: String) {
        val ready = states.value.session as? SessionState.Ready ?: return
        if (question.isBlank() || states.value.answering) return
        val turn = ChatTurn(++asked, question.trim(), attachments.take(), AnswerState.Waiting)
        states.update { it.copy(turns = it.turns + turn, problem = null) }
        val earlier = answer
        answer = scope.launch {
            // One that was cancelled may not have ended yet, and the session answers one question at a time.
            earlier?.join()
            reporting({ fail(turn, it) }) { follow(ready.session, turn) }
            readDevice()
        }
    }

    /** Ends the answer; what has been said stays. */
    fun stop() {
        (states.value.session as? SessionState.Ready)?.session?.stop()
    }

    /** Forgets the conversation, and ends an answer in progress. Pictures that are attached stay. */
    fun newConversation() {
        answer?.cancel()
        states.update { it.copy(turns = emptyList(), problem = null) }
    }

    fun report(problem: Problem) = states.update { it.copy(problem = problem) }

    fun dismissProblem() = states.update { it.copy(problem = null) }

    fun toggleTimings() = states.update { it.copy(timingsUnfolded = !it.timingsUnfolded) }

    override fun close() {
        attachments.take().forEach { it.encoded?.cancel() }
        super.close()
    }

    private fun changeSession(session: SessionState) {
        // Turns hold images of the session that made them.
        val turns = if (session == states.value.session) states.value.turns else emptyList()
        states.update { it.copy(session = session, turns = turns) }
        attachments.use((session as? SessionState.Ready)?.session)
        if (session is SessionState.Ready) scope.launch { readDevice() }
    }

    private suspend fun follow(session: VlmSession, turn: ChatTurn) {
        val text = StringBuilder()
        session.chat(history(states.value.turns)).collect { event ->
            when (event) {
                is ChatEvent.Planned -> Unit
                is ChatEvent.Text -> answer(turn.id, AnswerState.Streaming(text.append(event.piece).toString()))
                is ChatEvent.Finished -> finish(turn, event.text, event.metrics)
            }
        }
    }

    private suspend fun finish(turn: ChatTurn, text: String, metrics: Metrics) {
        answer(turn.id, AnswerState.Finished(text, metrics))
        states.update { it.copy(timings = Timings(metrics, it.timings?.pssMb ?: 0.0, it.timings?.thermal)) }
        // Stopped before the first word: nothing of the turn becomes part of the conversation, so its pictures are free again.
        if (text.isEmpty()) attachments.giveBack(turn.attachments)
    }

    private suspend fun fail(turn: ChatTurn, problem: Problem) {
        val text = states.value.turns.find { it.id == turn.id }?.answer?.text.orEmpty()
        answer(turn.id, AnswerState.Failed(text, problem))
        attachments.giveBack(turn.attachments)
    }

    private fun answer(id: Long, answer: AnswerState) = states.update { state ->
        state.copy(turns = state.turns.map { if (it.id == id) it.copy(answer = answer) else it })
    }

    private suspend fun readDevice() {
        val pss = withContext(Dispatchers.IO) { device.pssMb() }
        states.update { it.copy(timings = Timings(it.timings?.metrics, pss, device.thermal())) }
    }
}
