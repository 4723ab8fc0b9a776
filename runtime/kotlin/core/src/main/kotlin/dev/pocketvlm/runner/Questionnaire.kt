package dev.pocketvlm.runner

import com.google.gson.JsonElement
import com.google.gson.JsonObject
import dev.pocketvlm.runtime.ChatEvent
import dev.pocketvlm.runtime.ChatOptions
import dev.pocketvlm.runtime.Message
import dev.pocketvlm.runtime.Part
import dev.pocketvlm.runtime.UsageException
import dev.pocketvlm.runtime.VlmSession
import dev.pocketvlm.runtime.image.ImageSource
import dev.pocketvlm.runtime.jsonText
import dev.pocketvlm.runtime.parseJson
import dev.pocketvlm.runtime.reason
import java.io.File
import java.io.IOException
import kotlinx.coroutines.flow.filterIsInstance
import kotlinx.coroutines.flow.single

/**
 * Answers a list of conversations greedily, to compare one machine with another.
 *
 * The file holds a list of `{"messages": [...], "max_new_tokens": N}`; messages are those of chat templates, and an image part
 * is `{"type": "image", "image": PATH}`, relative to the file.
 */
internal class Questionnaire(private val session: VlmSession) {
    /** A list of what `pocketvlm run --json` prints for each. */
    suspend fun answer(file: File): String {
        val text = try {
            file.readText()
        } catch (error: IOException) {
            throw UsageException("${file.path}: cannot be read: ${error.reason()}", "name a list of questions")
        }
        val cases = parseJson(text, file.path).asJsonArray.map { it.asJsonObject }
        return jsonText(cases.map { answer(it, file.absoluteFile.parentFile) })
    }

    private suspend fun answer(case: JsonObject, folder: File): Map<String, Any?> {
        val messages = case["messages"].asJsonArray.map { message(it.asJsonObject, folder) }
        val options = ChatOptions(maxNewTokens = case["max_new_tokens"].asInt, temperature = 0.0)
        val finished = session.chat(messages, options).filterIsInstance<ChatEvent.Finished>().single()
        return linkedMapOf(
            "text" to finished.text,
            "token_ids" to finished.tokenIds,
            "tile_plan" to finished.tilePlans.map { it.toMap() },
            "metrics" to finished.metrics.toMap(),
        )
    }

    private fun message(message: JsonObject, folder: File): Message {
        val content = message["content"]
        val parts = if (content.isJsonArray) content.asJsonArray.map { part(it, folder) } else listOf(Part.Text(content.asString))
        return Message(message["role"].asString, parts)
    }

    private fun part(element: JsonElement, folder: File): Part {
        val part = element.asJsonObject
        if (part["type"].asString == "text") return Part.Text(part["text"].asString)
        return Part.Picture(ImageSource.File(folder.resolve(part["image"].asString)))
    }
}
