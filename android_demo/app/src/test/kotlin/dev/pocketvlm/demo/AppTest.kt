package dev.pocketvlm.demo

import android.app.Activity
import android.content.Intent
import android.os.Looper
import android.view.View
import android.view.ViewGroup
import android.widget.EditText
import android.widget.TextView
import dev.pocketvlm.demo.chat.ChatActivity
import dev.pocketvlm.demo.session.SessionState
import org.junit.After
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.rules.TemporaryFolder
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.android.controller.ActivityController
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode
import org.robolectric.shadows.ShadowPausedLooper

/** A test of the app's screens, on Android 15. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35], application = TestApplication::class, qualifiers = "w411dp-h891dp-xhdpi")
@GraphicsMode(GraphicsMode.Mode.NATIVE)
abstract class AppTest {
    @get:Rule
    val temporary = TemporaryFolder()

    val app: TestApplication get() = RuntimeEnvironment.getApplication() as TestApplication

    val documents: TestDocuments by lazy { Robolectric.setupContentProvider(TestDocuments::class.java, TestDocuments.AUTHORITY) }

    /** A run that stalls would fail a minute later, in another test. */
    @After
    fun closeSession() {
        (app.container.sessions.state.value as? SessionState.Ready)?.session?.close()
    }

    /** Runs the main thread until [condition] holds. */
    fun await(what: String, condition: () -> Boolean) = awaitOnMainThread(what, condition)

    /** Puts a bundle into the store, and opens it. */
    fun useBundle(bundle: TestBundle = TestBundle(), name: String = "tiny"): SessionState.Ready {
        bundle.writeTo(app.container.store.directory(name))
        app.container.sessions.select(name)
        await("the session") { app.container.sessions.state.value is SessionState.Ready }
        return app.container.sessions.state.value as SessionState.Ready
    }

    fun chat(): ActivityController<ChatActivity> = Robolectric.buildActivity(ChatActivity::class.java).setup()

    /** Chooses the picture [name] in the photo picker. */
    fun ChatActivity.pickPicture(name: String, content: ByteArray = TestPictures.png(4, 4)) {
        view<View>(R.id.pick).performClick()
        answerPicker(documents.add(name, content))
    }

    /** The app that was asked for something gives [uri]. */
    fun Activity.answerPicker(uri: android.net.Uri) {
        val request = shadowOf(this).nextStartedActivityForResult
        shadowOf(this).receiveResult(request.intent, Activity.RESULT_OK, Intent().setData(uri))
    }

    fun Activity.ask(question: String) {
        view<EditText>(R.id.question).setText(question)
        assertTrue("a question can be sent", view<View>(R.id.send).isEnabled)
        view<View>(R.id.send).performClick()
    }

    fun Activity.text(id: Int): String = view<TextView>(id).text.toString()

    fun <T : View> Activity.view(id: Int): T = findViewById(id) ?: error("no such view: ${resources.getResourceName(id)}")

    fun Activity.isShown(id: Int): Boolean = findViewById<View>(id)?.isShown == true

    /** Views of the latest turn. */
    val Activity.lastTurn: View get() = view<ViewGroup>(R.id.conversation).run { getChildAt(childCount - 1) }

    /** Views right below this one. */
    val View.children: List<View> get() = (this as? ViewGroup)?.let { group -> List(group.childCount, group::getChildAt) }.orEmpty()

    fun View.text(id: Int): String = findViewById<TextView>(id).text.toString()

    fun View.isShown(id: Int): Boolean = findViewById<View>(id).isShown
}

/** Runs the main thread until [condition] holds. */
fun awaitOnMainThread(what: String, condition: () -> Boolean) {
    val main = shadowOf(Looper.getMainLooper()) as ShadowPausedLooper
    val end = System.nanoTime() + LONGEST_NANOS
    while (true) {
        main.idle()
        if (condition()) return
        check(System.nanoTime() < end) {
            val container = RuntimeEnvironment.getApplication().container
            "waited in vain for $what; session: ${container.sessions.state.value}; import: ${container.imports.state.value}"
        }
        // Until another thread posts something.
        main.poll(POLL_MILLIS)
    }
}

private const val LONGEST_NANOS = 40_000_000_000
private const val POLL_MILLIS = 50L
