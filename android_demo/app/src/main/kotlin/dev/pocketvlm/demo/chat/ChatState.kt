package dev.pocketvlm.demo.chat

import dev.pocketvlm.android.ThermalStatus
import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.images.Picture
import dev.pocketvlm.demo.session.SessionState
import dev.pocketvlm.runtime.EncodedImage
import dev.pocketvlm.runtime.Metrics
import dev.pocketvlm.runtime.tiling.TilePlan

/** How far a picture is that has been attached and not yet been sent. */
sealed interface Encoding {
    /** No model is in memory yet. */
    data object Waiting : Encoding

    /** @property plan null until the picture has been opened. */
    data class Working(val plan: TilePlan?) : Encoding

    /** @property milliseconds null where its tokens were in the session's cache. */
    data class Done(val plan: TilePlan, val milliseconds: Double?) : Encoding
}

/** @property encoded null while there is no session that could encode it. */
data class Attachment(val id: Long, val picture: Picture, val encoded: EncodedImage?, val encoding: Encoding)

/** The answer to one question. */
sealed interface AnswerState {
    /** What has been said so far. */
    val text: String

    /** The picture is still being encoded, or the prompt read. */
    data object Waiting : AnswerState {
        override val text: String get() = ""
    }

    data class Streaming(override val text: String) : AnswerState

    /** Complete, or stopped: [Metrics.stopReason] tells. */
    data class Finished(override val text: String, val metrics: Metrics) : AnswerState

    data class Failed(override val text: String, val problem: Problem) : AnswerState
}

/** A question, its pictures and its answer. */
data class ChatTurn(val id: Long, val question: String, val attachments: List<Attachment>, val answer: AnswerState)

/** Figures of the latest answer, and of the process after it. */
data class Timings(val metrics: Metrics?, val pssMb: Double, val thermal: ThermalStatus?)

/** Everything that the chat screen shows. */
data class ChatState(
    val session: SessionState = SessionState.None,
    val turns: List<ChatTurn> = emptyList(),
    val attachments: List<Attachment> = emptyList(),
    val timings: Timings? = null,
    val problem: Problem? = null,
    val timingsUnfolded: Boolean = false,
) {
    val answering: Boolean
        get() = turns.lastOrNull()?.answer.let { it is AnswerState.Waiting || it is AnswerState.Streaming }

    val canSend: Boolean get() = session is SessionState.Ready && !answering
}
