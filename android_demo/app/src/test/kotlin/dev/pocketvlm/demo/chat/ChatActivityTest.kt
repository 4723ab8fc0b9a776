package dev.pocketvlm.demo.chat

import android.content.ClipData
import android.content.Intent
import android.content.res.Configuration
import android.graphics.Color
import android.net.Uri
import android.os.Build
import android.provider.MediaStore
import android.view.View
import android.view.ViewGroup
import android.view.accessibility.AccessibilityEvent
import android.view.accessibility.AccessibilityManager
import dev.pocketvlm.demo.AppTest
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.TestBundle
import dev.pocketvlm.demo.TestPictures
import dev.pocketvlm.demo.about.AboutActivity
import dev.pocketvlm.demo.bench.BenchmarkActivity
import dev.pocketvlm.demo.bundles.BundlesActivity
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNotEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.robolectric.Robolectric
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf

class ChatActivityTest : AppTest() {
    @Test
    fun `first start offers to import a bundle`() {
        val activity = chat().get()
        assertEquals("No model yet", activity.text(R.id.empty_title))
        activity.view<View>(R.id.empty_action).performClick()
        assertEquals(BundlesActivity::class.java.name, shadowOf(activity).nextStartedActivity.component?.className)
        assertFalse(activity.view<View>(R.id.send).isEnabled)
    }

    @Test
    fun `pick a picture, ask, read the answer`() {
        useBundle()
        val activity = chat().get()
        assertEquals("tiny · fake-cpu", activity.actionBar?.subtitle)
        activity.view<View>(R.id.pick).performClick()
        val asked = shadowOf(activity).peekNextStartedActivityForResult().intent
        assertEquals(MediaStore.ACTION_PICK_IMAGES, asked.action)
        activity.answerPicker(documents.add("screen.png", TestPictures.png(9, 4)))
        await("the encoding") { activity.attachmentText(R.id.attachment_state).startsWith("Encoded in") }
        assertEquals("4 tiles · 8 tokens", activity.attachmentText(R.id.attachment_plan))
        activity.ask("w7")
        await("the answer") { activity.lastTurn.isShown(R.id.turn_figures) }
        assertEquals("w7", activity.lastTurn.text(R.id.turn_question))
        assertEquals("w10w11", activity.lastTurn.text(R.id.turn_answer))
        val figures = activity.lastTurn.text(R.id.turn_figures)
        assertTrue(figures, figures.matches(Regex("2 tokens · first text .* · .* tok/s")))
        assertEquals("the field is free for the next question", "", activity.text(R.id.question))
        assertEquals(1, activity.lastTurn.findViewById<ViewGroup>(R.id.turn_pictures).childCount)
    }

    @Test
    fun `the stop button ends the answer and keeps it`() {
        useBundle(TestBundle.stallingInTheAnswer())
        val activity = chat().get()
        activity.ask("w7")
        await("the first words") { activity.lastTurn.text(R.id.turn_answer) == "w10w11" }
        assertEquals("Stop the answer", activity.view<View>(R.id.send).contentDescription)
        activity.view<View>(R.id.send).performClick()
        await("the end") { activity.lastTurn.isShown(R.id.turn_figures) }
        assertTrue(activity.lastTurn.text(R.id.turn_figures).startsWith("Stopped · "))
        assertEquals("w10w11", activity.lastTurn.text(R.id.turn_answer))
        assertEquals("Send", activity.view<View>(R.id.send).contentDescription)
    }

    @Test
    fun `turned in the middle of an answer, the screen goes on`() {
        useBundle(TestBundle.stallingInTheAnswer())
        val controller = chat()
        val upright = controller.get()
        upright.ask("w7")
        await("the first words") { upright.lastTurn.text(R.id.turn_answer) == "w10w11" }
        RuntimeEnvironment.setQualifiers("+land")
        controller.configurationChange()
        val activity = controller.get()
        assertNotEquals("another activity", upright, activity)
        assertEquals(Configuration.ORIENTATION_LANDSCAPE, activity.resources.configuration.orientation)
        assertEquals("w10w11", activity.lastTurn.text(R.id.turn_answer))
        assertTrue("the timings stand beside", activity.resources.getBoolean(R.bool.timings_beside))
        assertEquals(View.VISIBLE, activity.view<View>(R.id.timings_body).visibility)
        activity.view<View>(R.id.send).performClick()
        await("the end") { activity.lastTurn.text(R.id.turn_figures).startsWith("Stopped") }
        assertEquals("w10w11", activity.lastTurn.text(R.id.turn_answer))
    }

    @Test
    fun `timings are folded away until they are asked for`() {
        useBundle(TestBundle.withNpuVariant())
        val activity = chat().get()
        activity.ask("w7")
        await("the answer") { activity.lastTurn.isShown(R.id.turn_figures) }
        await("the figures") { app.container.sessions.selected != null && "tok/s" in activity.text(R.id.timings_summary) }
        assertFalse(activity.isShown(R.id.timings_grid))
        activity.view<View>(R.id.timings_header).performClick()
        await("the grid") { activity.isShown(R.id.timings_grid) }
        val shown = activity.view<View>(R.id.timings_grid).children.associate { it.text(R.id.timing_name) to it.text(R.id.timing_value) }
        val names = "Tiles, Image tokens, Vision, First text, Prefill, Decode, Prompt reused, Memory (PSS), Thermal"
        assertEquals(names, shown.keys.joinToString())
        assertEquals("123 MB", shown["Memory (PSS)"])
        assertEquals("Cool", shown["Thermal"])
        assertEquals("0", shown["Tiles"])
        val lines = activity.text(R.id.timings_backend).lines()
        assertEquals("Runs on fake-cpu (fake); asked for: the best that runs here", lines[0])
        assertTrue(lines[1], lines[1].startsWith("Not used: No Qualcomm libraries were given. Add onnxruntime-android-qnn"))
    }

    @Test
    fun `the share sheet brings a picture, to a running screen, too`() {
        useBundle()
        val shared = documents.add("shared.png", TestPictures.png(4, 4))
        val intent = Intent(Intent.ACTION_SEND).setType("image/png").putExtra(Intent.EXTRA_STREAM, shared)
        val controller = Robolectric.buildActivity(ChatActivity::class.java, intent).setup()
        val activity = controller.get()
        await("the first picture") { activity.attachments == 1 }
        val more = arrayListOf<Uri>(documents.add("2.png", TestPictures.png(4, 4)), documents.add("3.png", TestPictures.png(4, 8)))
        controller.newIntent(
            Intent(Intent.ACTION_SEND_MULTIPLE).setType("image/*").putParcelableArrayListExtra(Intent.EXTRA_STREAM, more),
        )
        await("three pictures") { activity.attachments == 3 }
        controller.recreate()
        await("they do not come twice") { controller.get().attachments == 3 }
    }

    @Test
    fun `several pictures can be picked at once`() {
        useBundle()
        val activity = chat().get()
        activity.view<View>(R.id.pick).performClick()
        val clip = ClipData.newRawUri(null, documents.add("1.png", TestPictures.png(4, 4)))
        clip.addItem(ClipData.Item(documents.add("2.png", TestPictures.png(4, 4, Color.RED))))
        val request = shadowOf(activity).nextStartedActivityForResult.intent
        shadowOf(activity).receiveResult(request, android.app.Activity.RESULT_OK, Intent().apply { clipData = clip })
        await("both") { activity.attachments == 2 }
        assertEquals("Remove picture 2", activity.lastAttachment.findViewById<View>(R.id.attachment_remove).contentDescription)
        activity.lastAttachment.findViewById<View>(R.id.attachment_remove).performClick()
        await("one") { activity.attachments == 1 }
    }

    @Test
    fun `the camera writes into a file of ours`() {
        useBundle()
        val activity = chat().get()
        activity.view<View>(R.id.camera).performClick()
        val request = shadowOf(activity).nextStartedActivityForResult.intent
        assertEquals(MediaStore.ACTION_IMAGE_CAPTURE, request.action)
        @Suppress("DEPRECATION")
        val target = requireNotNull(request.getParcelableExtra<Uri>(MediaStore.EXTRA_OUTPUT))
        assertEquals(Intent.FLAG_GRANT_WRITE_URI_PERMISSION, request.flags and Intent.FLAG_GRANT_WRITE_URI_PERMISSION)
        activity.contentResolver.openOutputStream(target).use { requireNotNull(it).write(TestPictures.png(9, 4)) }
        shadowOf(activity).receiveResult(request, android.app.Activity.RESULT_OK, null)
        await("the encoding") { activity.attachments == 1 && activity.attachmentText(R.id.attachment_state).startsWith("Encoded") }
        assertEquals("4 tiles · 8 tokens", activity.attachmentText(R.id.attachment_plan))
    }

    @Test
    fun `going back from the picker changes nothing`() {
        useBundle()
        val activity = chat().get()
        activity.view<View>(R.id.pick).performClick()
        val request = shadowOf(activity).nextStartedActivityForResult.intent
        shadowOf(activity).receiveResult(request, android.app.Activity.RESULT_CANCELED, null)
        await("quiet") { !activity.isShown(R.id.problem) }
        assertEquals(0, activity.attachments)
    }

    @Test
    fun `a damaged picture is explained`() {
        useBundle()
        val activity = chat().get()
        activity.pickPicture("broken.jpg", "no picture at all".toByteArray())
        await("the problem") { activity.isShown(R.id.problem) }
        assertTrue(activity.text(R.id.problem_message).isNotBlank())
        assertEquals(View.ACCESSIBILITY_LIVE_REGION_ASSERTIVE, activity.view<View>(R.id.problem).accessibilityLiveRegion)
        assertEquals(0, activity.attachments)
        activity.view<View>(R.id.problem_dismiss).performClick()
        await("quiet") { !activity.isShown(R.id.problem) }
    }

    @Test
    fun `a bundle of a newer schema is explained`() {
        TestBundle.ofNewerSchema().writeTo(app.container.store.directory("newer"))
        app.container.sessions.select("newer")
        val activity = chat().get()
        await("the failure") { activity.text(R.id.empty_title) == "newer cannot be used" }
        val told = activity.text(R.id.empty_text)
        assertTrue(told, "schema 2.0; this reader knows 1.x" in told)
        assertTrue(told, "pdate" in told)
    }

    @Test
    fun `screen readers hear the answer once, when it is complete`() {
        val manager = app.getSystemService(AccessibilityManager::class.java)
        shadowOf(manager).setEnabled(true)
        useBundle()
        val activity = chat().get()
        activity.ask("w7")
        await("the answer") { activity.lastTurn.isShown(R.id.turn_figures) }
        val heard = shadowOf(manager).sentAccessibilityEvents
            .filter { it.eventType == AccessibilityEvent.TYPE_ANNOUNCEMENT }.map { it.text.joinToString() }
        assertEquals(listOf("Answer: w10w11"), heard)
        assertEquals("You: w7", activity.lastTurn.findViewById<View>(R.id.turn_question).contentDescription)
    }

    @Test
    fun `the menu leads to the other screens`() {
        val activity = chat().get()
        val screens = mapOf(
            R.id.menu_bundles to BundlesActivity::class.java,
            R.id.menu_benchmark to BenchmarkActivity::class.java,
            R.id.menu_about to AboutActivity::class.java,
        )
        for ((item, screen) in screens) {
            shadowOf(activity).clickMenuItem(item)
            assertEquals(screen.name, shadowOf(activity).nextStartedActivity.component?.className)
        }
        assertEquals(35, Build.VERSION.SDK_INT)
    }

    private val ChatActivity.attachments: Int get() = view<ViewGroup>(R.id.attachments).childCount

    private val ChatActivity.lastAttachment: View get() = view<ViewGroup>(R.id.attachments).getChildAt(attachments - 1)

    private fun ChatActivity.attachmentText(id: Int): String = if (attachments == 0) "" else lastAttachment.text(id)
}
