package dev.pocketvlm.demo.chat

import android.content.ComponentCallbacks2
import android.graphics.Color
import dev.pocketvlm.demo.AppTest
import dev.pocketvlm.demo.TestBundle
import dev.pocketvlm.demo.TestPictures
import dev.pocketvlm.demo.images.PictureReader
import dev.pocketvlm.demo.session.SessionState
import dev.pocketvlm.runtime.StopReason
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertNotSame
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test

class ChatViewModelTest : AppTest() {
    private val reader: PictureReader by lazy { PictureReader(app.contentResolver, mostBytes = 1 shl 20) }
    private val model: ChatViewModel by lazy { ChatViewModel(app.container.sessions, reader, app.testDevice) }
    private val state: ChatState get() = model.state.value
    private val latest: AnswerState get() = state.turns.last().answer

    @After
    fun close() = model.close()

    @Test
    fun `without a bundle nothing can be sent`() {
        assertEquals(SessionState.None, state.session)
        model.send("w7")
        assertTrue(state.turns.isEmpty())
    }

    @Test
    fun `a question streams its answer and its figures`() {
        useBundle()
        model.send("w7 w8")
        assertTrue(state.answering)
        awaitAnswer()
        val answer = latest as AnswerState.Finished
        assertEquals("w10w11", answer.text)
        assertEquals(StopReason.STOP_TOKEN, answer.metrics.stopReason)
        await("the device's figures") { state.timings?.pssMb == 123.4 }
        assertEquals(answer.metrics, state.timings?.metrics)
        assertFalse(state.answering)
    }

    @Test
    fun `a picture is encoded before the question, and is part of it`() {
        useBundle()
        attach("one.png", TestPictures.png(9, 4))
        await("the encoding") { state.attachments.single().encoding is Encoding.Done }
        assertEquals(4, (state.attachments.single().encoding as Encoding.Done).plan.encodedTiles)
        model.send("w7")
        assertTrue("it went with the question", state.attachments.isEmpty())
        awaitAnswer()
        val metrics = (latest as AnswerState.Finished).metrics
        assertEquals(listOf(4, 8, true), listOf(metrics.tiles, metrics.imageTokens, metrics.imageWasCached))
    }

    @Test
    fun `a picture may be chosen before the model is loaded`() {
        TestBundle().writeTo(app.container.store.directory("tiny"))
        attach("one.png", TestPictures.png(4, 4))
        await("the picture") { state.attachments.isNotEmpty() }
        assertEquals(Encoding.Waiting, state.attachments.single().encoding)
        app.container.sessions.select("tiny")
        await("the encoding") { state.attachments.single().encoding is Encoding.Done }
    }

    @Test
    fun `later turns reuse the context`() {
        useBundle()
        attach("one.png", TestPictures.png(4, 4))
        await("the picture") { state.attachments.isNotEmpty() }
        model.send("w7")
        awaitAnswer()
        model.send("w8")
        awaitAnswer()
        assertEquals(2, state.turns.size)
        val metrics = (latest as AnswerState.Finished).metrics
        // <user>, two visual tokens, w7, <bot>, w10 and, where the tokenizer splits them, w11.
        assertTrue("reused ${metrics.kvPrefixReused}", metrics.kvPrefixReused >= 5)
        assertEquals(1, metrics.tiles)
    }

    @Test
    fun `stopping keeps what was said, and the conversation goes on from it`() {
        useBundle(TestBundle.stallingInTheAnswer())
        model.send("w7")
        await("the first words") { latest.text == "w10w11" }
        model.stop()
        awaitAnswer()
        assertEquals(StopReason.CANCELLED, (latest as AnswerState.Finished).metrics.stopReason)
        assertEquals("w10w11", latest.text)
        assertEquals(2, history(state.turns).size)
    }

    @Test
    fun `stopped before the first word, the picture is free again`() {
        useBundle(TestBundle.stallingOnWhite())
        attach("white.png", TestPictures.png(4, 4, Color.WHITE))
        await("the picture") { state.attachments.isNotEmpty() }
        model.send("w7")
        assertEquals(AnswerState.Waiting, latest)
        model.stop()
        awaitAnswer()
        assertEquals("", latest.text)
        await("the picture") { state.attachments.size == 1 }
        assertTrue("the empty turn is no part of the conversation", history(state.turns).isEmpty())
        model.detach(state.attachments.single().id)
        assertTrue(state.attachments.isEmpty())
    }

    @Test
    fun `taking a picture away cancels its encoding`() {
        val session = useBundle(TestBundle.stallingOnWhite()).session
        attach("white.png", TestPictures.png(4, 4, Color.WHITE))
        await("the encoding to begin") { state.attachments.singleOrNull()?.encoding is Encoding.Working }
        val encoded = requireNotNull(state.attachments.single().encoded)
        model.detach(state.attachments.single().id)
        await("its end") { encoded.done }
        assertNull("nobody is told of what they asked for", state.problem)
        // The queue is free for the next one.
        attach("blue.png", TestPictures.png(4, 4))
        await("the next encoding") { state.attachments.singleOrNull()?.encoding is Encoding.Done }
        assertEquals(session, (state.session as SessionState.Ready).session)
    }

    @Test
    fun `a picture that Android cannot decode is told of and not attached`() {
        useBundle()
        attach("broken.png", TestPictures.png(4, 4).copyOf(40))
        await("the problem") { state.problem != null }
        assertTrue(state.attachments.isEmpty())
        assertTrue(message().isNotBlank())
        model.dismissProblem()
        assertNull(state.problem)
    }

    @Test
    fun `a damaged picture whose question was sent ends that question alone`() {
        useBundle()
        attach("broken.png", TestPictures.png(4, 4).copyOf(40))
        await("the picture") { state.attachments.isNotEmpty() || state.problem != null }
        model.send("w7")
        awaitAnswer()
        model.send("w8")
        awaitAnswer()
        assertEquals("w10w11", latest.text)
    }

    @Test
    fun `a picture that is gone or too large is told of`() {
        model.attach(listOf(documents.uri("nothing.png")))
        await("the problem") { state.problem != null }
        assertEquals("The picture cannot be read", message())
        attach("video.mp4", ByteArray((1 shl 20) + 1))
        await("the next problem") { state.problem != null && message() != "The picture cannot be read" }
        assertEquals("The picture is larger than 1 MB", message())
    }

    @Test
    fun `a question that does not fit is told of with what to do`() {
        useBundle()
        model.send((1..70).joinToString(" ") { "w9" })
        awaitAnswer()
        val problem = (latest as AnswerState.Failed).problem
        assertTrue(problem.message(app.resources), problem.message(app.resources).startsWith("The prompt is "))
        assertTrue(problem.hint(app.resources).startsWith("Shorten it"))
        model.send("w7")
        awaitAnswer()
        assertEquals("w10w11", latest.text)
    }

    @Test
    fun `a new conversation ends the answer and begins anew`() {
        useBundle(TestBundle.stallingInTheAnswer())
        model.send("w7")
        await("the first words") { latest.text == "w10w11" }
        model.newConversation()
        assertTrue(state.turns.isEmpty())
        model.send("w8")
        await("the first words of the next") { latest.text == "w10w11" }
        assertEquals(1, state.turns.size)
    }

    @Test
    fun `another bundle begins another conversation, with the same picture`() {
        val first = useBundle()
        attach("one.png", TestPictures.png(4, 4))
        await("the encoding") { state.attachments.singleOrNull()?.encoding is Encoding.Done }
        model.send("w7")
        awaitAnswer()
        attach("two.png", TestPictures.png(8, 8))
        await("the encoding") { state.attachments.singleOrNull()?.encoding is Encoding.Done }
        val second = useBundle(name = "other")
        assertNotSame(first.session, second.session)
        await("the encoding by the other") { state.attachments.singleOrNull()?.encoding is Encoding.Done }
        assertTrue(state.turns.isEmpty())
        model.send("w7")
        awaitAnswer()
        assertEquals("w10w11", latest.text)
    }

    @Test
    fun `when memory is low the vision stages go, and come back for the next picture`() {
        useBundle()
        model.send("w7")
        awaitAnswer()
        app.onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_UI_HIDDEN)
        model.send("w7")
        awaitAnswer()
        assertNull("the picture picker is in front: no reason", (latest as AnswerState.Finished).metrics.rssAfterReleaseMb)
        @Suppress("DEPRECATION")
        app.onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_RUNNING_LOW)
        await("the release") {
            if (!state.answering) model.send("w7")
            (latest as? AnswerState.Finished)?.metrics?.rssAfterReleaseMb != null
        }
        attach("one.png", TestPictures.png(4, 4))
        await("the encoding") { state.attachments.singleOrNull()?.encoding is Encoding.Done }
        assertNotNull(state.attachments.single().encoded)
    }

    private fun attach(name: String, content: ByteArray) = model.attach(listOf(documents.add(name, content)))

    private fun awaitAnswer() = await("the end of the answer") { !state.answering }

    private fun message(): String = requireNotNull(state.problem).message(app.resources)
}
