package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.image.CheckedImageDecoder
import dev.pocketvlm.runtime.image.ImageFile
import dev.pocketvlm.runtime.image.ImageSource
import dev.pocketvlm.runtime.image.RgbImage
import java.io.File
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertIs
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlin.time.Duration.Companion.seconds
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withContext
import kotlinx.coroutines.withTimeout
import org.junit.jupiter.api.io.TempDir

/** Pixels alone: no image file is opened. */
internal object NoFiles : CheckedImageDecoder() {
    override fun decodePixels(image: ImageFile): RgbImage = error("no file is decoded here")
}

class VlmSessionTest {
    @TempDir
    lateinit var folder: File

    private val plain = listOf(Message(Role.USER, "w7 w8"))

    // The scripts stall on these, for a minute, until they are cancelled.
    private val stallingText = Message(Role.USER, "w77")
    private val stallingPicture = picture { if (it % 2 == 0) 0 else 255 }

    @Test
    fun `the answer can be stopped within a run, and the session goes on`() = withSession("stalls") { session ->
        val events = async { session.chat(listOf(stallingText)).toList() }
        stop(session, events)
        val finished = assertIs<ChatEvent.Finished>(events.await().last())
        assertEquals(StopReason.CANCELLED to emptyList<Int>(), finished.metrics.stopReason to finished.tokenIds)
        assertEquals(4, answer(session, plain, 4).tokenIds.size)
    }

    @Test
    fun `who stops collecting cancels the run`() = withSession("stalls") { session ->
        val collecting = launch { session.chat(listOf(stallingText)).toList() }
        untilBusy(session)
        collecting.cancelAndJoin()
        assertEquals(4, answer(session, plain, 4).tokenIds.size)
    }

    @Test
    fun `a reader who has seen enough ends the answer`() = withSession("plain") { session ->
        val first = session.chat(plain, ChatOptions(maxNewTokens = 40)).first { it is ChatEvent.Text }
        assertIs<ChatEvent.Text>(first)
        assertEquals(4, answer(session, plain, 4).tokenIds.size)
    }

    @Test
    fun `an image can be cancelled within a run, before its turn, and after its end`() = withSession("stalls") { session ->
        val stalling = session.encode(stallingPicture)
        val waiting = session.encode(picture { 3 })
        assertEquals(Grid(1, 1), stalling.plan().grid)
        waiting.cancel()
        stalling.cancel()
        assertFailsWith<CancelledException> { stalling.await() }
        assertFailsWith<CancelledException> { waiting.await() }
        val good = session.encode(picture { 3 })
        good.await()
        good.cancel()
        assertEquals(3, answer(session, listOf(Message.user("w7", good)), 3).tokenIds.size)
    }

    @Test
    fun `a question about a cancelled image fails, and one that waits for an image can be stopped`() =
        withSession("stalls") { session ->
            val image = session.encode(stallingPicture)
            val question = listOf(Message.user("w7", image))
            val events = async { session.chat(question).toList() }
            stop(session, events)
            assertEquals(StopReason.CANCELLED, assertIs<ChatEvent.Finished>(events.await().last()).metrics.stopReason)
            image.cancel()
            assertFailsWith<CancelledException> { session.chat(question).toList() }
        }

    @Test
    fun `one answer at a time`() = withSession("stalls") { session ->
        val busy = async { session.chat(listOf(stallingText)).toList() }
        untilBusy(session)
        val error = assertFailsWith<UsageException> { session.chat(plain).toList() }
        assertContains(error.problem, "still answering another question")
        stop(session, busy)
    }

    @Test
    fun `close ends what is going on`() = withSession("stalls") { session ->
        val answering = async { session.chat(listOf(stallingText)).toList() }
        val image = session.encode(stallingPicture)
        untilBusy(session)
        withContext(Dispatchers.IO) { session.close() }
        assertEquals(StopReason.CANCELLED, assertIs<ChatEvent.Finished>(answering.await().last()).metrics.stopReason)
        assertFailsWith<CancelledException> { image.await() }
        assertFailsWith<UsageException> { session.chat(plain).toList() }
        assertFailsWith<UsageException> { session.encode(stallingPicture) }
        assertFailsWith<UsageException> { session.releaseVision() }
        session.close()
    }

    @Test
    fun `a session may be closed by who reads its answer`() = withSession("plain") { session ->
        val events = ArrayList<ChatEvent>()
        session.chat(plain, ChatOptions(maxNewTokens = 40)).collect { event ->
            events += event
            if (event is ChatEvent.Text) session.close()
        }
        assertIs<ChatEvent.Finished>(events.last())
    }

    @Test
    fun `an image is encoded once, and a picture that differs in one value again`() {
        val trace = Trace()
        withSession("plain", { copy(trace = trace) }) { session ->
            val images = listOf(picture { 50 }, picture { 50 }, picture { if (it == 7) 51 else 50 }).map(session::encode)
            images.forEach { it.await() }
            assertEquals(listOf(false, true, false), images.map { it.wasCached })
            assertEquals(2, trace.events.count { it.name == "connector" })
            assertTrue(answer(session, listOf(Message.user("w7", images[0])), 2).metrics.imageWasCached)
        }
    }

    @Test
    fun `the image cache has the size that is asked for`() = withSession("plain", { copy(imageCacheMb = 0) }) { session ->
        repeat(2) { assertFalse(session.encode(picture { 50 }).also { it.await() }.wasCached) }
    }

    @Test
    fun `what is wrong with an image is told by the image and by the answer`() = withSession("plain") { session ->
        val image = session.encode(ImageSource.File(folder.resolve("nothing.png")))
        assertContains(assertFailsWith<ImageException> { image.plan() }.problem, "no such image file")
        val error = assertFailsWith<ImageException> { session.chat(listOf(Message.user("w7", image))).toList() }
        assertEquals("bad_image" to 3, error.code to error.exitCode)
    }

    @Test
    fun `an image of another bundle is refused`() = withSession("plain") { session ->
        withSession("fixed-batch") { other ->
            val image = other.encode(picture { 1 })
            val error = assertFailsWith<UsageException> { session.chat(listOf(Message.user("w7", image))).toList() }
            assertContains(error.problem, "session of another bundle")
        }
    }

    @Test
    fun `two sessions answer at once`() = withSession("plain") { one ->
        withSession("plain") { other ->
            val alone = answer(one, plain, 12).tokenIds
            val both = listOf(one, other).map { async(Dispatchers.Default) { answer(it, plain, 12).tokenIds } }
            assertEquals(listOf(alone, alone), both.map { it.await() })
        }
    }

    @Test
    fun `the vision stages are released by policy, on demand, and loaded again`() {
        val trace = Trace()
        withSession("plain", { copy(trace = trace, release = ReleasePolicy.AFTER_ENCODE) }) { session ->
            session.encode(picture { 1 }).await()
            assertNull(session.releaseVision())
            session.encode(picture { 2 }).await()
            assertEquals(2, trace.events.count { it.name == "release" })
            // Three stages when the session was opened, and again for the second image.
            assertEquals(6, trace.events.count { it.name == "load" && it.arguments["stage"] in VisionContract.STAGES })
        }
        withSession("plain") { session ->
            session.encode(picture { 1 }).await()
            assertTrue(session.releaseVision()!!.beforeMb!! > 0)
            assertNull(session.releaseVision())
            session.encode(picture { 2 }).await()
            assertTrue(answer(session, plain, 2).metrics.rssAfterReleaseMb!! > 0)
        }
    }

    @Test
    fun `a bundle that was replaced meanwhile is not mixed with the opened one`() {
        val bundle = FakeBundles.copy("plain", folder)
        withSession(bundle) { session ->
            session.releaseVision()
            val file = bundle.resolve("v/vision.onnx")
            val content = file.readBytes()
            file.delete()
            file.writeBytes(content)
            val error = assertFailsWith<BundleException> { session.encode(picture { 1 }).await() }
            assertContains(error.problem, "replaced or changed since it was opened")
        }
    }

    @Test
    fun `patches are embedded ahead of the vision blocks`() {
        val trace = Trace()
        withSession("plain", { copy(trace = trace, visionBatch = 1) }) { session ->
            session.encode(ImageSource.Pixels(RgbImage(12, 12, ByteArray(12 * 12 * 3)))).await()
        }
        val threads = trace.events.groupBy({ it.name }, { it.row })
        assertEquals(10, threads.getValue("patch_embed").size)
        assertTrue(threads.getValue("patch_embed").toSet().intersect(threads.getValue("vision_encoder").toSet()).isEmpty())
        assertContains(trace.toJson(), "\"patch embedding\"")
    }

    @Test
    fun `options outside their range`() = runBlocking {
        for (options in listOf<SessionOptions.() -> SessionOptions>(
            { copy(threads = 0) },
            { copy(threads = 100_000) },
            { copy(visionBatch = 0) },
            { copy(maxLength = 0) },
            { copy(imageCacheMb = -1) },
            { copy(target = "third") },
        )) {
            assertFailsWith<UsageException> { VlmSession.open(FakeBundles.pristine("plain"), SessionOptions(NoFiles).options()) }
        }
        val error = assertFailsWith<UsageException> {
            VlmSession.open(FakeBundles.pristine("fixed-batch"), SessionOptions(NoFiles, visionBatch = 3))
        }
        assertContains(error.hint, "compiled for batches of 2")
    }

    @Test
    fun `opening can be cancelled`() = runBlocking {
        val opening = launch(start = kotlinx.coroutines.CoroutineStart.LAZY) {
            VlmSession.open(FakeBundles.pristine("plain"), SessionOptions(NoFiles))
        }
        opening.cancelAndJoin()
        assertTrue(opening.isCancelled)
    }

    @Test
    fun `stages that do not fit together are refused`() = runBlocking {
        val bundle = FakeBundles.copy("plain", folder)
        for ((stage, change, message) in listOf(
            Triple("prefill", "logits" to "scores", "stage prefill (v/decoder.onnx) differs from the contract's inputs and outputs"),
            Triple("vision_encoder", "features" to "other", "differs from the contract's inputs and outputs in features, other"),
        )) {
            val fresh = FakeBundles.copy("plain", folder.resolve(stage))
            FakeBundles.reseal(fresh) { manifest ->
                val outputs = manifest.objects("variants").single()["stages"].asJsonObject[stage].asJsonObject.objects("outputs")
                outputs.first { it["name"].asString == change.first }.addProperty("name", change.second)
            }
            val error = assertFailsWith<BundleException> { VlmSession.open(fresh, SessionOptions(NoFiles)) }
            assertContains(error.problem, message)
            assertContains(error.problem, fresh.path)
        }
        assertEquals("tiny", Bundle.open(bundle).manifest.model.name)
    }

    private fun picture(value: (Int) -> Int): ImageSource =
        ImageSource.Pixels(RgbImage(4, 4, ByteArray(48) { value(it).toByte() }))

    private suspend fun answer(session: VlmSession, messages: List<Message>, tokens: Int): ChatEvent.Finished =
        session.chat(messages, ChatOptions(maxNewTokens = tokens)).toList().last() as ChatEvent.Finished

    private fun withSession(
        name: String,
        options: SessionOptions.() -> SessionOptions = { this },
        work: suspend kotlinx.coroutines.CoroutineScope.(VlmSession) -> Unit,
    ) = withSession(FakeBundles.pristine(name), options, work)

    private fun withSession(
        bundle: File,
        options: SessionOptions.() -> SessionOptions = { this },
        work: suspend kotlinx.coroutines.CoroutineScope.(VlmSession) -> Unit,
    ) = runBlocking {
        withTimeout(30.seconds) {
            VlmSession.open(bundle, SessionOptions(NoFiles).options()).use { session -> coroutineScope { work(session) } }
        }
    }

    private suspend fun untilBusy(session: VlmSession) {
        while (!session.answering) delay(1)
    }

    private suspend fun stop(session: VlmSession, answering: Job) {
        untilBusy(session)
        session.stop()
        answering.join()
    }
}
