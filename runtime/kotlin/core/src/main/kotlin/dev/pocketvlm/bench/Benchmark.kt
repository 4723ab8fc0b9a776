package dev.pocketvlm.bench

import dev.pocketvlm.runtime.ChatEvent
import dev.pocketvlm.runtime.ChatOptions
import dev.pocketvlm.runtime.EncodedImage
import dev.pocketvlm.runtime.Message
import dev.pocketvlm.runtime.Metrics
import dev.pocketvlm.runtime.Part
import dev.pocketvlm.runtime.Role
import dev.pocketvlm.runtime.UsageException
import dev.pocketvlm.runtime.VlmSession
import dev.pocketvlm.runtime.image.ImageCodec
import dev.pocketvlm.runtime.image.ImageSource
import dev.pocketvlm.runtime.image.RgbImage
import kotlinx.coroutines.flow.filterIsInstance
import kotlinx.coroutines.flow.single
import kotlin.math.roundToInt

/**
 * What is asked for.
 *
 * @property promptTokens positions of the text prompt, about.
 * @property newTokens most tokens of an answer.
 * @property repetitions measured runs of each case, after one that warms up.
 * @property threads what the session was opened with; null is the engine's own choice.
 * @property image name of the picture, for the report; null measures text alone.
 */
public data class BenchmarkSettings(
    val promptTokens: Int = 128,
    val newTokens: Int = 32,
    val repetitions: Int = 3,
    val threads: Int? = null,
    val image: String? = null,
)

/**
 * The cases of `pocketvlm bench`, so that its figures and these are of the same work: "text", a prompt without image; or with
 * an image "image cold", the picture coming with the question, and "image encoded", the question coming when the picture has
 * been encoded. No run may profit from an earlier one: every prompt begins with another number, and every picture differs in
 * one corner.
 *
 * @param session one that has answered nothing yet: a second benchmark would find its pictures and prompts in the caches.
 * @param progress is told what comes next, once per run.
 */
public class Benchmark(
    private val session: VlmSession,
    private val codec: ImageCodec,
    private val settings: BenchmarkSettings,
    private val progress: (String) -> Unit = {},
) {
    private val questions = Questions(session, settings.newTokens)

    /**
     * Measures every case.
     *
     * @param image the picture; null measures text alone.
     * @throws UsageException a length that the bundle or the model cannot have.
     */
    public suspend fun run(image: ImageSource?): BenchmarkReport {
        for ((name, value) in listOf("repetitions" to settings.repetitions, "new-tokens" to settings.newTokens)) {
            if (value < 1) throw UsageException("--$name $value", "it must be 1 or more")
        }
        val capacity = session.variant.kvCache.capacity
        if (settings.promptTokens + 1 > capacity) {
            throw UsageException(
                "--prompt-tokens ${settings.promptTokens} does not fit into the bundle's $capacity positions",
                "give fewer",
            )
        }
        progress("find the length of the prompt")
        questions.fit(settings.promptTokens)
        val cases = LinkedHashMap<String, suspend () -> Metrics>()
        if (image == null) {
            cases["text"] = { questions.ask(null) }
        } else {
            val pictures = Pictures(codec, image, session.manifest.image.maxPixels)
            cases["image cold"] = { questions.ask(session.encode(pictures.next())) }
            cases["image encoded"] = { questions.ask(session.encode(pictures.next()).also { it.await() }) }
        }
        return BenchmarkReport(session, settings, cases.mapValues { (name, measure) -> runs(name, measure) })
    }

    private suspend fun runs(name: String, measure: suspend () -> Metrics): List<Metrics> =
        List(settings.repetitions + 1) { number ->
            progress(if (number == 0) "$name: warm up" else "$name: run $number of ${settings.repetitions}")
            measure()
        }.drop(1)
}

/** Asks for long enough answers to prompts of a wanted length. */
private class Questions(private val session: VlmSession, private val newTokens: Int) {
    private var words = 1
    private var asked = 0

    /** Finds how many words give a text prompt of about [wanted] positions, by two answers. */
    suspend fun fit(wanted: Int) {
        val many = 2 * WORDS.size
        val fewTokens = measure(1)
        val perWord = (measure(1 + many) - fewTokens).toDouble() / many
        if (wanted < fewTokens) {
            throw UsageException(
                "--prompt-tokens $wanted is too short",
                "the shortest prompt of this model has $fewTokens tokens",
            )
        }
        words = 1 + ((wanted - fewTokens) / perWord).roundToInt()
    }

    /** One question that no earlier one begins like; reads the answer to its end. */
    suspend fun ask(image: EncodedImage?): Metrics = answer(words, image, newTokens)

    private suspend fun measure(words: Int): Int = answer(words, null, 1).promptTokens

    private suspend fun answer(words: Int, image: EncodedImage?, newTokens: Int): Metrics {
        asked++
        val text = (listOf(asked.toString()) + (0 until words - 1).map { WORDS[(asked + it) % WORDS.size] }).joinToString(" ")
        val parts = listOfNotNull(image?.let(Part::Encoded)) + Part.Text(text)
        val options = ChatOptions(maxNewTokens = newTokens, temperature = 0.0)
        return session.chat(listOf(Message(Role.USER, parts)), options).filterIsInstance<ChatEvent.Finished>().single().metrics
    }

    private companion object {
        // The words of `pocketvlm bench`.
        val WORDS = "screen button battery alarm message network total train seat menu photo list".split(" ")
    }
}

/** Files of the same picture, each with a corner of another grey, so that none is in a cache. */
private class Pictures(private val codec: ImageCodec, source: ImageSource, maxPixels: Long) {
    private val picture = codec.decode(source, maxPixels)
    private val jpeg = (source as? ImageSource.File)?.file?.extension?.lowercase() in listOf("jpg", "jpeg")
    private var made = 0

    /** The next picture as the bytes of a PNG or JPEG file. */
    fun next(): ImageSource {
        made++
        val level = ((37 * made) % 256).toByte()
        val pixels = picture.pixels.copyOf()
        for (row in 0 until minOf(MARK, picture.height)) {
            val start = row * picture.width * 3
            pixels.fill(level, start, start + 3 * minOf(MARK, picture.width))
        }
        return ImageSource.Bytes(codec.encode(RgbImage(picture.width, picture.height, pixels), jpeg))
    }

    private companion object {
        const val MARK = 16
    }
}
