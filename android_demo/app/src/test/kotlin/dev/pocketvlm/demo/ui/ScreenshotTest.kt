package dev.pocketvlm.demo.ui

import android.app.Activity
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.view.View
import android.view.ViewGroup
import android.widget.EditText
import android.widget.ScrollView
import dev.pocketvlm.demo.AppTest
import dev.pocketvlm.demo.DemoBundle
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.TestBundle
import dev.pocketvlm.demo.TestPictures
import dev.pocketvlm.demo.about.AboutActivity
import dev.pocketvlm.demo.bench.BenchmarkActivity
import dev.pocketvlm.demo.bundles.BundleSource
import dev.pocketvlm.demo.bundles.BundlesActivity
import dev.pocketvlm.demo.chat.ChatActivity
import dev.pocketvlm.demo.session.SessionState
import java.io.File
import java.util.concurrent.CountDownLatch
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.robolectric.Robolectric
import org.robolectric.RuntimeEnvironment

/** Pictures of every screen, light and dark, in target/screenshots. */
class ScreenshotTest : AppTest() {
    private val folder = File(System.getProperty("pocketvlm.screenshots")).apply { mkdirs() }

    @Test
    fun `before there is a bundle`() = inLightAndDark("chat-first-start") { chat().get() }

    @Test
    fun `a fresh conversation`() = inLightAndDark("chat-ready") {
        useDemo()
        chat().get()
    }

    @Test
    fun `a picture is attached`() = inLightAndDark("chat-attached") {
        useDemo()
        chat().get().apply {
            attach("screen-1.png")
            view<EditText>(R.id.question).setText("What is the title?")
        }
    }

    @Test
    fun `a picture is being encoded, and its question waits`() = inLightAndDark("chat-waiting") {
        useBundle(TestBundle.stallingOnWhite())
        chat().get().apply {
            pickPicture("white.png", TestPictures.png(4, 4, Color.WHITE))
            await("the picture") { view<ViewGroup>(R.id.attachments).childCount == 1 }
            ask("What is this?")
            pickPicture("next.png", DemoBundle.screen("screen-2.png"))
            await("the next picture") { view<ViewGroup>(R.id.attachments).childCount == 1 }
        }
    }

    @Test
    fun `answers, with the timings unfolded`() = inLightAndDark("chat-answers") {
        useDemo()
        conversation().apply {
            view<View>(R.id.timings_header).performClick()
            await("the timings") { isShown(R.id.timings_grid) }
        }
    }

    @Test
    fun `a picture that cannot be used`() = inLightAndDark("chat-problem") {
        useDemo()
        conversation().apply {
            pickPicture("broken.jpg", "no picture".toByteArray())
            await("the problem") { isShown(R.id.problem) }
        }
    }

    @Test
    fun `a bundle that cannot be used`() = inLightAndDark("chat-failed") {
        TestBundle.ofNewerSchema().writeTo(app.container.store.directory("newer-bundle"))
        app.container.sessions.select("newer-bundle")
        await("the failure") { app.container.sessions.state.value is SessionState.Failed }
        chat().get()
    }

    @Test
    fun `on its side`() = inLightAndDark("chat-landscape", "+land") {
        useDemo()
        conversation()
    }

    @Test
    fun `on a tablet`() = inLightAndDark("chat-tablet", "w900dp-h1200dp-xhdpi") {
        useDemo()
        conversation()
    }

    @Test
    fun `with large type, from right to left`() {
        RuntimeEnvironment.setFontScale(1.6f)
        inLightAndDark("chat-large-rtl", "+ar-ldrtl") {
            useDemo()
            conversation()
        }
    }

    @Test
    fun `the bundles`() = inLightAndDark("bundles") {
        TestBundle.withNpuVariant().writeTo(app.container.store.directory("for-the-npu"))
        TestBundle.ofNewerSchema().writeTo(app.container.store.directory("newer-bundle"))
        TestBundle().writeTo(File(requireNotNull(app.container.pushed.folder), "pushed-bundle"))
        useDemo()
        bundles(3)
    }

    @Test
    fun `an import`() {
        val latch = CountDownLatch(1)
        app.container.imports.start(HalfWay(latch))
        inLightAndDark("bundles-import") {
            bundles(0).apply { await("the progress") { "copied" in text(R.id.import_step) && "MB" in text(R.id.import_step) } }
        }
        latch.countDown()
    }

    @Test
    fun `a benchmark`() = inLightAndDark("benchmark") {
        useDemo()
        Robolectric.buildActivity(BenchmarkActivity::class.java).setup().get().apply {
            view<View>(R.id.picture_choose).performClick()
            answerPicker(documents.add("screen-1.png", DemoBundle.screen("screen-1.png")))
            await("the picture") { text(R.id.picture_name) == "screen-1.png" }
        }
    }

    @Test
    fun `the figures of a benchmark`() = inLightAndDark("benchmark-results") {
        useDemo()
        Robolectric.buildActivity(BenchmarkActivity::class.java).setup().get().apply {
            view<View>(R.id.picture_choose).performClick()
            answerPicker(documents.add("screen-1.png", DemoBundle.screen("screen-1.png")))
            await("the picture") { text(R.id.picture_name) == "screen-1.png" }
            view<EditText>(R.id.new_tokens).setText("8")
            view<View>(R.id.run).performClick()
            await("the results") { isShown(R.id.results_card) }
            val results = view<View>(R.id.results_card)
            view<ScrollView>(R.id.scroll).scrollTo(0, results.top)
        }
    }

    @Test
    fun `about the app`() = inLightAndDark("about") { Robolectric.buildActivity(AboutActivity::class.java).setup().get() }

    private fun useDemo() {
        val directory = app.container.store.directory("demo")
        if (!directory.exists()) DemoBundle.directory.copyRecursively(directory)
        if (app.container.sessions.state.value is SessionState.Ready) return
        app.container.sessions.select("demo")
        await("the session") { app.container.sessions.state.value is SessionState.Ready }
    }

    private fun conversation(): ChatActivity = chat().get().apply {
        attach("screen-2.png")
        for ((question, _) in DemoBundle.questions.getValue("screen-2.png").take(2)) {
            ask(question)
            await("the answer") { lastTurn.isShown(R.id.turn_figures) }
        }
    }

    private fun ChatActivity.attach(name: String) {
        pickPicture(name, DemoBundle.screen(name))
        await("the encoding") {
            val strip = view<ViewGroup>(R.id.attachments)
            strip.childCount == 1 && strip.getChildAt(0).text(R.id.attachment_state).startsWith("Encoded")
        }
    }

    private fun bundles(count: Int): BundlesActivity = Robolectric.buildActivity(BundlesActivity::class.java).setup().get().apply {
        await("the cards") { view<ViewGroup>(R.id.bundles).childCount == count }
    }

    private fun inLightAndDark(name: String, qualifiers: String = "+port", scene: () -> Activity) {
        RuntimeEnvironment.setQualifiers(qualifiers)
        val light = shoot(scene(), "$name-light")
        RuntimeEnvironment.setQualifiers("+night")
        val dark = shoot(scene(), "$name-dark")
        assertEquals(light.width to light.height, dark.width to dark.height)
        assertTrue("light is lighter", luminance(light) > 0.5 && luminance(dark) < 0.3)
    }

    private fun shoot(activity: Activity, name: String): Bitmap {
        // Whatever still wants to be laid out or scrolled.
        await("the layout") { !activity.window.decorView.isLayoutRequested }
        val view = activity.window.decorView
        val bitmap = Bitmap.createBitmap(view.width, view.height, Bitmap.Config.ARGB_8888)
        view.draw(Canvas(bitmap))
        File(folder, "$name.png").outputStream().use { bitmap.compress(Bitmap.CompressFormat.PNG, 100, it) }
        return bitmap
    }

    /** The mean of the border, where no picture is. */
    private fun luminance(bitmap: Bitmap): Double =
        (0 until bitmap.height step 8).map { Color.luminance(bitmap.getPixel(2, it)).toDouble() }.average()

    /** A zip of which half has arrived. */
    private class HalfWay(private val latch: CountDownLatch) : BundleSource {
        override val name: String = "bluelm-v-3b.zip"

        override fun bytes(): Long = 1_800_000_000

        override fun copyTo(directory: File, written: (Int) -> Unit) {
            written(1_060_000_000)
            latch.await()
        }
    }
}
