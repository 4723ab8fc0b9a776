package dev.pocketvlm.demo.bundles

import android.app.Activity
import android.app.AlertDialog
import android.content.Intent
import android.view.View
import android.view.ViewGroup
import dev.pocketvlm.demo.AppTest
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.TestBundle
import dev.pocketvlm.demo.session.SessionState
import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test
import org.robolectric.Robolectric
import org.robolectric.Shadows.shadowOf
import org.robolectric.shadows.ShadowAlertDialog

class BundlesActivityTest : AppTest() {
    private val activity: BundlesActivity by lazy { Robolectric.buildActivity(BundlesActivity::class.java).setup().get() }

    @Test
    fun `a zip is imported and used`() {
        assertTrue(activity.isShown(R.id.bundles_none))
        importZip("demo model.zip", TestBundle.withNpuVariant().zip())
        awaitOutcome("demo-model is imported and verified")
        await("the session") { app.container.sessions.state.value is SessionState.Ready }
        await("the mark") { card("demo-model").isShown(R.id.bundle_selected) }
        val card = card("demo-model")
        assertTrue(card.text(R.id.bundle_facts), card.text(R.id.bundle_facts).matches(Regex("tiny · 0 parameters · [0-9.]+ kB")))
        assertEquals("Licence: none", card.text(R.id.bundle_licence))
        val variants = card.findViewById<View>(R.id.bundle_variants).children
        assertEquals(
            listOf(
                "qnn:SM8750 · fp32" to "Does not run here: No Qualcomm libraries were given",
                "fake-cpu · fp32" to "Runs here",
            ),
            variants.map { it.text(R.id.variant_name) to it.text(R.id.variant_reason) },
        )
        activity.view<View>(R.id.import_button).performClick()
        await("the card to go") { !activity.isShown(R.id.import_card) }
    }

    @Test
    fun `a bundle of a newer schema is refused with what to do`() {
        importZip("newer.zip", TestBundle.ofNewerSchema().zip())
        awaitOutcome("Newer.zip: manifest.json has schema 2.0; this reader knows 1.x")
        assertEquals("Update PocketVLM", activity.text(R.id.import_step))
        assertTrue(app.container.store.names().isEmpty())
    }

    @Test
    fun `too little room is told in numbers, before anything is copied`() {
        app.free = 20_000_000
        importZip("tiny.zip", TestBundle().zip())
        awaitOutcome("tiny.zip needs 50 MB, and 20 MB are free")
        assertEquals("Delete bundles or other files, then import it again.", activity.text(R.id.import_step))
    }

    @Test
    fun `a document that is gone is told of`() {
        answerPicker(documents.uri("gone.zip"))
        awaitOutcome("gone.zip cannot be read")
    }

    @Test
    fun `the bundle in use can be replaced`() {
        val first = useBundle()
        importZip("tiny.zip", TestBundle { it.getAsJsonObject("model").addProperty("name", "tiny 2") }.zip())
        awaitOutcome("tiny is imported and verified")
        await("the new session") {
            (app.container.sessions.state.value as? SessionState.Ready)?.session?.manifest?.model?.name == "tiny 2"
        }
        assertTrue(first.session !== (app.container.sessions.state.value as SessionState.Ready).session)
    }

    @Test
    fun `pushed bundles are found, verified and moved`() {
        val folder = requireNotNull(app.container.pushed.folder)
        TestBundle().writeTo(File(folder, "pushed-bundle"))
        File(folder, "notes.txt").writeText("not a bundle")
        assertTrue(activity.text(R.id.pushed_command), activity.text(R.id.pushed_command).startsWith("adb push my-bundle /"))
        val list = activity.view<ViewGroup>(R.id.pushed)
        await("the pushed bundle") { list.childCount == 1 }
        assertEquals("Import pushed-bundle", list.getChildAt(0).findViewById<View>(R.id.pushed_import).contentDescription)
        list.getChildAt(0).findViewById<View>(R.id.pushed_import).performClick()
        awaitOutcome("pushed-bundle is imported and verified")
        await("the list") { list.childCount == 0 }
        assertFalse(File(folder, "pushed-bundle").exists())
    }

    @Test
    fun `another bundle can be chosen, and deleted after a question`() {
        TestBundle().writeTo(app.container.store.directory("second"))
        useBundle(name = "first")
        await("both") { names() == listOf("first", "second") }
        card("second").findViewById<View>(R.id.bundle_use).performClick()
        await("the other session") { (app.container.sessions.state.value as? SessionState.Ready)?.name == "second" }
        await("the mark") { card("second").isShown(R.id.bundle_selected) }
        card("second").findViewById<View>(R.id.bundle_delete).performClick()
        val dialog = ShadowAlertDialog.getLatestDialog() as AlertDialog
        assertTrue(shadowOf(dialog).title.toString(), shadowOf(dialog).title.startsWith("Delete second?"))
        dialog.getButton(AlertDialog.BUTTON_POSITIVE).performClick()
        await("one bundle") { names() == listOf("first") }
        assertEquals(SessionState.None, app.container.sessions.state.value)
        assertEquals(listOf("first"), app.container.store.names())
    }

    @Test
    fun `a bundle that cannot be opened says why`() {
        TestBundle().writeTo(app.container.store.directory("broken"))
        File(app.container.store.directory("broken"), "v/vision.onnx").delete()
        await("the card") { names() == listOf("broken") }
        val row = card("broken").findViewById<ViewGroup>(R.id.bundle_variants).getChildAt(0)
        assertEquals("Broken: v/vision.onnx: missing from the bundle", row.text(R.id.variant_name))
        assertFalse(card("broken").isShown(R.id.bundle_use))
    }

    private fun importZip(name: String, content: ByteArray) = answerPicker(documents.add(name, content))

    private fun answerPicker(uri: android.net.Uri) {
        activity.view<View>(R.id.import_zip).performClick()
        val request = shadowOf(activity).nextStartedActivityForResult.intent
        shadowOf(activity).receiveResult(request, Activity.RESULT_OK, Intent().setData(uri))
    }

    private fun awaitOutcome(title: String) =
        await(title) { activity.isShown(R.id.import_card) && activity.text(R.id.import_title) == title }

    private fun names(): List<String> = activity.view<View>(R.id.bundles).children.map { it.text(R.id.bundle_name) }

    private fun card(name: String): View {
        await("the card of $name") { name in names() }
        return activity.view<ViewGroup>(R.id.bundles).getChildAt(names().indexOf(name))
    }
}
