package dev.pocketvlm.demo

import android.view.ViewGroup
import dev.pocketvlm.demo.bundles.PushedBundle
import dev.pocketvlm.demo.chat.ChatActivity
import dev.pocketvlm.demo.session.SessionState
import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

/** The real thing: the demo's bundle on ONNX Runtime, and its screenshots. */
class DemoBundleTest : AppTest() {
    @Test
    fun `import, pick a screenshot, ask, read the right answers`() {
        val pushed = File(requireNotNull(app.container.pushed.folder), "demo")
        DemoBundle.directory.copyRecursively(pushed)
        app.container.imports.start(PushedBundle(pushed))
        await("the session") { app.container.sessions.state.value is SessionState.Ready }
        val activity = chat().get()
        assertTrue("${activity.actionBar?.subtitle}", activity.actionBar?.subtitle?.endsWith("· ort-cpu") == true)
        for ((name, pairs) in DemoBundle.questions.entries.take(2)) {
            activity.pickPicture(name, DemoBundle.screen(name))
            await("the picture") { activity.view<ViewGroup>(R.id.attachments).childCount == 1 }
            val answers = pairs.map { (question, _) -> activity.answerTo(question) }
            assertEquals(pairs.map { it.second }, answers)
            activity.newConversation()
        }
    }

    private fun ChatActivity.answerTo(question: String): String {
        ask(question)
        await("the answer to $question") { lastTurn.isShown(R.id.turn_figures) }
        return lastTurn.text(R.id.turn_answer)
    }

    private fun ChatActivity.newConversation() {
        model.newConversation()
        await("an empty conversation") { view<ViewGroup>(R.id.conversation).childCount == 0 }
    }
}
