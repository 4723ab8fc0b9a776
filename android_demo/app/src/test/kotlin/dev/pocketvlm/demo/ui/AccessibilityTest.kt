package dev.pocketvlm.demo.ui

import android.app.Activity
import android.graphics.Color
import android.view.View
import android.view.ViewGroup
import android.widget.Button
import android.widget.TextView
import dev.pocketvlm.demo.AppTest
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.TestBundle
import dev.pocketvlm.demo.TestPictures
import dev.pocketvlm.demo.about.AboutActivity
import dev.pocketvlm.demo.bench.BenchmarkActivity
import dev.pocketvlm.demo.bundles.BundlesActivity
import org.junit.Assert.assertEquals
import org.junit.Test
import org.robolectric.Robolectric
import org.robolectric.RuntimeEnvironment

/** What can be touched is large enough and has a name, and no text is cut off, whatever the size of the type. */
class AccessibilityTest : AppTest() {
    @Test
    fun `every screen, with ordinary type`() = check(everyScreen())

    @Test
    fun `every screen, with type of twice the size`() {
        RuntimeEnvironment.setFontScale(2f)
        check(everyScreen())
    }

    @Test
    fun `every screen, on its side`() {
        RuntimeEnvironment.setQualifiers("+land")
        check(everyScreen())
    }

    private fun everyScreen(): List<Activity> {
        TestBundle.ofNewerSchema().writeTo(app.container.store.directory("newer"))
        useBundle(TestBundle.withNpuVariant())
        val chat = chat().get()
        chat.pickPicture("one.png", TestPictures.png(4, 4))
        await("the picture") { chat.view<ViewGroup>(R.id.attachments).childCount == 1 }
        chat.ask("w7")
        await("the answer") { chat.lastTurn.isShown(R.id.turn_figures) }
        chat.view<View>(R.id.timings_header).performClick()
        chat.pickPicture("two.png", TestPictures.png(9, 4, Color.GREEN))
        await("the next picture") { chat.view<ViewGroup>(R.id.attachments).childCount == 1 }
        val bundles = Robolectric.buildActivity(BundlesActivity::class.java).setup().get()
        await("the bundles") { bundles.view<ViewGroup>(R.id.bundles).childCount == 2 }
        val benchmark = Robolectric.buildActivity(BenchmarkActivity::class.java).setup().get()
        val about = Robolectric.buildActivity(AboutActivity::class.java).setup().get()
        return listOf(chat, bundles, benchmark, about)
    }

    private fun check(screens: List<Activity>) {
        assertEquals(emptyList<String>(), screens.flatMap { screen -> complaints(screen, screen.window.decorView) })
    }

    private fun complaints(screen: Activity, view: View): List<String> {
        if (!view.isShown) return emptyList()
        val own = listOfNotNull(size(view), name(view), cut(view)).map { "${screen.localClassName}: ${describe(view)}: $it" }
        return own + view.children.flatMap { complaints(screen, it) }
    }

    private fun size(view: View): String? {
        val least = (48 * view.resources.displayMetrics.density).toInt()
        // Text that can be selected counts as clickable, but is none to hit.
        val target = view.isClickable && !(view is TextView && view.isTextSelectable && view !is Button) || view is Button
        return "${view.width}x${view.height} pixels to hit".takeIf { target && (view.width < least || view.height < least) }
    }

    private fun name(view: View): String? {
        if (!view.isClickable || view.contentDescription?.isNotBlank() == true) return null
        val says = (view as? TextView)?.let { "${it.text}${it.hint ?: ""}" }.orEmpty()
        return "no name".takeIf { says.isBlank() && view.labelFor == View.NO_ID && !labelled(view) }
    }

    private fun labelled(view: View): Boolean = all(view.rootView).any { it.labelFor == view.id }

    private fun all(view: View): List<View> = listOf(view) + view.children.flatMap(::all)

    private fun cut(view: View): String? {
        val layout = (view as? TextView)?.layout ?: return null
        if (view.ellipsize != null || view.text.isEmpty()) return null
        val room = view.height - view.paddingTop - view.paddingBottom
        val wide = (0 until layout.lineCount).maxOf(layout::getLineMax) - (view.width - view.paddingLeft - view.paddingRight)
        return "'${view.text}' is cut: ${layout.height} in $room high, $wide too wide".takeIf { layout.height > room || wide > 1 }
    }

    private fun describe(view: View): String =
        if (view.id == View.NO_ID) view.javaClass.simpleName else view.resources.getResourceEntryName(view.id)
}
