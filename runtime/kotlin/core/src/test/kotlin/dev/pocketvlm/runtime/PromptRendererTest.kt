package dev.pocketvlm.runtime

import com.google.gson.JsonArray
import com.google.gson.JsonObject
import dev.pocketvlm.runtime.image.ImageSource
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

class PromptRendererTest {
    private val vectors = Fixtures.json("prompts.json")
    private val renderers = vectors.getAsJsonObject("specs").entrySet().associate { (family, spec) ->
        family to PromptRenderer(ManifestReader.readPrompt(JsonFields(spec, family, ignoreUnknown = false)))
    }

    @Test
    fun `conversations are written as Python writes them, and refused with the same words`() {
        val cases = vectors.objects("cases")
        assertTrue(cases.size >= 30 && renderers.size >= 10)
        for (case in cases) {
            val messages = case.objects("messages").map(::message)
            for ((family, expected) in case.getAsJsonObject("families").entrySet()) {
                assertEquals(expected.toString(), rendered(renderers.getValue(family), messages), "$family: $messages")
            }
        }
    }

    @Test
    fun `half of a surrogate pair is named by its place`() {
        val message = Message(Role.USER, "a\uD83D\uDE00b\uDE00")
        val error = runCatching { renderers.values.first().render(listOf(message)) }.exceptionOrNull()
        assertEquals("message 0 (user): character 3 is half of a surrogate pair (pass valid Unicode)", error?.message)
    }

    private fun rendered(renderer: PromptRenderer, messages: List<Message>): String = try {
        val pieces = JsonArray()
        for (piece in renderer.render(messages)) {
            val item = JsonArray()
            when (piece) {
                is Piece.Template -> item.run { add("template"); add(piece.text) }
                is Piece.Content -> item.run { add("content"); add(piece.text) }
                is Piece.ImageSlot -> item.run { add("image"); add(piece.index) }
            }
            pieces.add(item)
        }
        JsonObject().apply { add("pieces", pieces) }.toString()
    } catch (error: PromptException) {
        val told = JsonArray().apply { listOf(error.code, error.problem, error.hint).forEach(::add) }
        JsonObject().apply { add("error", told) }.toString()
    }

    private fun message(fields: JsonObject): Message {
        val parts = fields.objects("content").map { part ->
            if (part["type"].asString == "text") Part.Text(part["text"].asString) else Part.Picture(ImageSource.Bytes(ByteArray(0)))
        }
        return Message(fields["role"].asString, parts)
    }
}
