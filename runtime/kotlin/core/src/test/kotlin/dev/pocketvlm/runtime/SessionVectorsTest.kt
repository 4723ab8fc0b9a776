package dev.pocketvlm.runtime

import com.google.gson.JsonArray
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import dev.pocketvlm.runtime.image.ImageSource
import dev.pocketvlm.runtime.image.RgbImage
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.test.runTest
import kotlin.test.assertEquals
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.TestFactory

/** Whole conversations on the scripted engine, which answers by all that it was given, position by position. */
class SessionVectorsTest {
    @TestFactory
    fun `answers, figures and errors are Python's`(): List<DynamicTest> {
        val cases = Fixtures.file("sessions.json").reader().use { JsonParser.parseReader(it).asJsonArray }
        return cases.mapIndexed { number, case ->
            val fields = case.asJsonObject
            val name = "$number: ${fields["bundle"].asString} ${fields["options"]}"
            DynamicTest.dynamicTest(name) { runTest { check(fields) } }
        }
    }

    private suspend fun check(case: JsonObject) {
        VlmSession.open(FakeBundles.pristine(case["bundle"].asString), options(case["options"].asJsonObject)).use { session ->
            for (question in case.objects("questions")) {
                assertEquals(question["expected"].toString(), answer(session, question).toString(), question["messages"].toString())
            }
        }
    }

    private fun options(fields: JsonObject) = SessionOptions(
        imageDecoder = NoFiles,
        visionBatch = fields["vision_batch"]?.asInt,
        overlap = fields["overlap"]?.asBoolean ?: true,
        release = fields["release"]?.let { ReleasePolicy.valueOf(it.asString.uppercase()) } ?: ReleasePolicy.KEEP,
        maxLength = fields["max_length"]?.asInt,
    )

    private suspend fun answer(session: VlmSession, question: JsonObject): JsonObject = try {
        val events = session.chat(question.objects("messages").map(::message), chatOptions(question)).toList()
        val finished = events.last() as ChatEvent.Finished
        assertEquals(finished.text, events.filterIsInstance<ChatEvent.Text>().joinToString("") { it.piece })
        assertEquals(listOf(finished.tilePlans), events.filterIsInstance<ChatEvent.Planned>().map { it.tilePlans })
        json(finished)
    } catch (error: PocketVlmException) {
        JsonObject().apply {
            add("error", JsonArray().apply { listOf(error.code, error.problem, error.hint).forEach(::add) })
        }
    }

    private fun chatOptions(question: JsonObject) = ChatOptions(
        maxNewTokens = question["max_new_tokens"].asInt,
        temperature = question["temperature"]?.asDouble,
        topK = question["top_k"]?.asInt,
        topP = question["top_p"]?.asDouble,
        minP = question["min_p"]?.asDouble,
        repetitionPenalty = question["repetition_penalty"]?.asDouble,
        seed = question["seed"]?.asLong,
        stop = question["stop"]?.asJsonArray?.map { it.asString }.orEmpty(),
    )

    private fun message(fields: JsonObject): Message {
        val content = fields["content"]
        if (!content.isJsonArray) return Message(fields["role"].asString, content.asString)
        val parts = content.asJsonArray.map { it.asJsonObject }.map { part ->
            if (part["type"].asString == "text") {
                Part.Text(part["text"].asString)
            } else {
                Part.Picture(ImageSource.Pixels(picture(part["image"].asJsonObject)))
            }
        }
        return Message(fields["role"].asString, parts)
    }

    private fun picture(fields: JsonObject): RgbImage {
        val (width, height) = listOf("width", "height").map { fields[it].asInt }
        val (start, step) = listOf("start", "step").map { fields[it].asInt }
        return RgbImage(width, height, ByteArray(width * height * 3) { (start + step * it).toByte() })
    }

    private fun json(finished: ChatEvent.Finished): JsonObject {
        val figures = listOf("tiles", "image_tokens", "image_was_cached", "prompt_tokens", "kv_prefix_reused", "new_tokens", "stop_reason")
        val text = jsonText(
            linkedMapOf(
                "text" to finished.text,
                "token_ids" to finished.tokenIds,
                "tile_plans" to finished.tilePlans.map { it.toMap() },
                "metrics" to finished.metrics.toMap().filterKeys { it in figures },
            ),
        )
        return JsonParser.parseString(text).asJsonObject
    }
}
