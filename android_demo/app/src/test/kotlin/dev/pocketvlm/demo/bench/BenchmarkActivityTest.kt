package dev.pocketvlm.demo.bench

import android.content.Intent
import android.view.View
import android.widget.EditText
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import dev.pocketvlm.demo.AppTest
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.TestBundle
import dev.pocketvlm.demo.TestPictures
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test
import org.robolectric.Robolectric
import org.robolectric.Shadows.shadowOf

class BenchmarkActivityTest : AppTest() {
    private val activity: BenchmarkActivity by lazy { Robolectric.buildActivity(BenchmarkActivity::class.java).setup().get() }

    @Test
    fun `without a model there is nothing to run`() {
        assertEquals("No model is loaded. Choose a bundle first.", activity.text(R.id.benchmark_model))
        assertFalse(activity.view<View>(R.id.run).isEnabled)
    }

    @Test
    fun `measures text alone, and gives the object of pocketvlm bench with the device`() {
        useBundle(TestBundle(chain = emptyMap()))
        set(repetitions = 2, promptTokens = 12, newTokens = 4)
        activity.view<View>(R.id.run).performClick()
        awaitResults()
        val rows = rows()
        assertEquals("text" to "", rows.first())
        assertEquals("12", rows.toMap()["prompt_tokens"]?.substringBefore(" "))
        val json = sharedJson()
        val keys = "model variant backend_actual stages emulated settings note results runtime device"
        assertEquals(keys, json.keySet().joinToString(" "))
        assertEquals(2, json.getAsJsonObject("settings")["repetitions"].asInt)
        assertEquals("SM8750", json.getAsJsonObject("device")["soc"].asString)
        assertTrue(json.getAsJsonObject("results").getAsJsonObject("text").has("decode_tok_s"))
    }

    @Test
    fun `measures a picture, cold and encoded, and saves the JSON`() {
        useBundle(TestBundle(chain = emptyMap()))
        activity.view<View>(R.id.picture_choose).performClick()
        activity.answerPicker(documents.add("screen.png", TestPictures.png(64, 32)))
        await("the picture") { activity.text(R.id.picture_name) == "screen.png" }
        set(repetitions = 1, promptTokens = 8, newTokens = 3)
        activity.view<View>(R.id.run).performClick()
        awaitResults()
        assertEquals(listOf("image cold", "image encoded"), rows().filter { it.second.isEmpty() }.map { it.first })
        activity.view<View>(R.id.save).performClick()
        activity.answerPicker(documents.uri("bench.json"))
        await("the file") { documents.content("bench.json").endsWith("}") }
        val saved = JsonParser.parseString(documents.content("bench.json")).asJsonObject
        assertEquals("screen.png", saved.getAsJsonObject("settings")["image"].asString)
        activity.view<View>(R.id.picture_clear).performClick()
        await("no picture") { activity.text(R.id.picture_name) == "None: text alone is measured" }
    }

    @Test
    fun `a second run finds nothing of the first in a cache`() {
        useBundle(TestBundle(chain = emptyMap()))
        activity.view<View>(R.id.picture_choose).performClick()
        activity.answerPicker(documents.add("screen.png", TestPictures.png(64, 32)))
        await("the picture") { activity.text(R.id.picture_name) == "screen.png" }
        set(repetitions = 1, promptTokens = 8, newTokens = 3)
        val reports = List(2) {
            val before = activity.model.state.value.measurement
            activity.view<View>(R.id.run).performClick()
            await("the results") { activity.model.state.value.measurement.let { now -> now is Measurement.Done && now !== before } }
            (activity.model.state.value.measurement as Measurement.Done).report
        }
        for (metrics in reports.flatMap { it.runs.getValue("image cold") }) {
            assertTrue("encoded in ${metrics.visionMs} ms", metrics.visionMs > 0)
            assertFalse(metrics.imageWasCached)
        }
    }

    @Test
    fun `a prompt that does not fit is told of`() {
        useBundle()
        set(repetitions = 1, promptTokens = 900, newTokens = 4)
        activity.view<View>(R.id.run).performClick()
        await("the problem") { activity.isShown(R.id.problem) }
        val told = activity.text(R.id.problem_message)
        assertTrue(told, "900 does not fit into the bundle's 64 positions" in told)
        assertTrue(activity.view<View>(R.id.run).isEnabled)
    }

    @Test
    fun `numbers below one are refused where they stand`() {
        useBundle()
        set(repetitions = 0, promptTokens = 12, newTokens = 4)
        activity.view<View>(R.id.run).performClick()
        assertEquals("A whole number of 1 or more, please", activity.view<EditText>(R.id.repetitions).error)
        assertFalse(activity.isShown(R.id.progress_card))
    }

    @Test
    fun `a run can be stopped`() {
        useBundle(TestBundle(chain = mapOf(4 to 10, 10 to 11, 11 to 10), stallOn = mapOf("v/decoder.onnx" to listOf(11.0))))
        set(repetitions = 1, promptTokens = 12, newTokens = 8)
        activity.view<View>(R.id.run).performClick()
        await("the first run") { activity.text(R.id.progress_text) == "Text: warm up" }
        assertEquals("Stop", activity.text(R.id.run))
        activity.view<View>(R.id.run).performClick()
        await("the end") { !activity.isShown(R.id.progress_card) }
        assertEquals("Run", activity.text(R.id.run))
        assertFalse(activity.isShown(R.id.problem))
    }

    private fun set(repetitions: Int, promptTokens: Int, newTokens: Int) {
        activity.view<EditText>(R.id.repetitions).setText(repetitions.toString())
        activity.view<EditText>(R.id.prompt_tokens).setText(promptTokens.toString())
        activity.view<EditText>(R.id.new_tokens).setText(newTokens.toString())
    }

    private fun awaitResults() = await("the results") { activity.isShown(R.id.results_card) }

    private fun rows(): List<Pair<String, String>> =
        activity.view<View>(R.id.results).children.map { it.text(R.id.result_name) to it.text(R.id.result_value) }

    private fun sharedJson(): JsonObject {
        activity.view<View>(R.id.share).performClick()
        @Suppress("DEPRECATION")
        val chooser = shadowOf(activity).nextStartedActivity.getParcelableExtra<Intent>(Intent.EXTRA_INTENT)
        return JsonParser.parseString(requireNotNull(chooser).getStringExtra(Intent.EXTRA_TEXT)).asJsonObject
    }
}
