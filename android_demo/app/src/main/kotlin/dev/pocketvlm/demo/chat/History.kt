package dev.pocketvlm.demo.chat

import dev.pocketvlm.runtime.Message
import dev.pocketvlm.runtime.Role

/**
 * The conversation as the model reads it: all turns that have an answer, stopped ones included, and the question that waits for
 * one. Turns that failed or say nothing are left out with their question, so that roles alternate.
 */
fun history(turns: List<ChatTurn>): List<Message> = turns.flatMap { turn ->
    val images = turn.attachments.mapNotNull { it.encoded }.toTypedArray()
    val question = Message.user(turn.question, *images)
    when (val answer = turn.answer) {
        is AnswerState.Waiting -> listOf(question)
        is AnswerState.Finished ->
            if (answer.text.isEmpty()) emptyList() else listOf(question, Message(Role.ASSISTANT, answer.text))
        is AnswerState.Streaming, is AnswerState.Failed -> emptyList()
    }
}
