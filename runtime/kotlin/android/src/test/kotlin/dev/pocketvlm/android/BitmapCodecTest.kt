package dev.pocketvlm.android

import com.google.gson.JsonObject
import com.google.gson.JsonParser
import dev.pocketvlm.runtime.ImageException
import dev.pocketvlm.runtime.image.ImageSource
import dev.pocketvlm.runtime.image.RgbImage
import java.io.File
import java.security.MessageDigest
import kotlin.math.abs
import kotlin.math.max
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode

/** Android's own decoders, which Robolectric brings for desktops, against what Pillow makes of the same files. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35])
@GraphicsMode(GraphicsMode.Mode.NATIVE)
class BitmapCodecTest {
    private val folder = generateSequence(File("").absoluteFile) { it.parentFile }
        .map { it.resolve("tests/fixtures") }
        .first { it.isDirectory }
    private val files: List<JsonObject> = folder.resolve("images.json").reader().use { reader ->
        JsonParser.parseReader(reader).asJsonObject["files"].asJsonArray.map { it.asJsonObject }
    }
    private val codec = BitmapCodec()

    private fun image(name: String) = folder.resolve("images/$name")

    private fun decode(name: String): RgbImage = codec.decode(ImageSource.File(image(name)), MAX_PIXELS)

    private fun readable(vararg endings: String): List<JsonObject> =
        files.filter { it.has("digest") && it["file"].asString.substringAfterLast('.') in endings }

    /** Of the size and the pixels, as in images.json. */
    private fun digest(image: RgbImage): String {
        val hash = MessageDigest.getInstance("SHA-256")
        hash.update("${image.width}x${image.height}\n".toByteArray())
        return hash.digest(image.pixels).joinToString("") { "%02x".format(it) }
    }

    @Test
    fun `BMP, WEBP without loss, PNG and GIF are Pillow's in every bit`() {
        val cases = readable("bmp", "webp", "png", "gif").filter { it["file"].asString !in INEXACT }
        assertTrue(cases.size > 60, "${cases.size} cases")
        for (case in cases) {
            val name = case["file"].asString
            assertEquals(case["digest"].asString, digest(decode(name)), name)
        }
    }

    @Test
    fun `JPEG differs from Pillow's by few levels, and stands upright`() {
        val cases = readable("jpg").filter { image("${it["file"].asString}.png").exists() }
        assertTrue(cases.size > 15, "${cases.size} cases")
        for (case in cases) {
            val name = case["file"].asString
            val difference = difference(decode(name), decode("$name.png"))
            assertTrue(difference.largest <= 3 && difference.mean < 0.5, "$name: $difference")
        }
    }

    @Test
    fun `the others are decoded, too`() {
        val cases = readable("webp", "bmp").filter { it["file"].asString in INEXACT }
        assertEquals(INEXACT.size, cases.size)
        for (case in cases) {
            val image = decode(case["file"].asString)
            assertEquals(case.getAsJsonArray("size").map { it.asInt }, listOf(image.width, image.height))
        }
    }

    @Test
    fun `bytes are read like a file`() {
        val name = "jpeg-orientation-6.jpg"
        val image = codec.decode(ImageSource.Bytes(image(name).readBytes()), MAX_PIXELS)
        assertEquals(digest(decode(name)), digest(image))
    }

    @Test
    fun `damaged files are refused`() {
        for (name in listOf("bad-half.jpg", "bad-half-progressive.jpg", "bad-half.bmp", "bad-several.webp", "bad-half.png")) {
            val error = assertFailsWith<ImageException>(name) { decode(name) }
            assertTrue(name in error.problem, error.problem)
        }
    }

    @Test
    fun `files that are cut off anywhere are refused`() {
        for (name in listOf("jpeg-baseline-444.jpg", "jpeg-progressive-420-odd.jpg", "bmp-RGB.bmp", "bmp-4.bmp", "webp-lossless.webp")) {
            val content = image(name).readBytes()
            for (length in listOf(content.size / 3, content.size / 2, content.size - 100, content.size - 2)) {
                assertFailsWith<ImageException>("$name, $length of ${content.size} bytes") {
                    codec.decode(ImageSource.Bytes(content.copyOf(length)), MAX_PIXELS)
                }
            }
        }
    }

    @Test
    fun `TIFF is refused in words`() {
        val error = assertFailsWith<ImageException> { decode("tiff-RGB.tif") }
        assertTrue("TIFF" in error.problem && "PNG" in error.hint, "${error.problem}; ${error.hint}")
    }

    @Test
    fun `what is written can be read`() {
        val picture = decode("astronaut.png")
        val png = codec.decode(ImageSource.Bytes(codec.encode(picture, jpeg = false)), MAX_PIXELS)
        assertEquals(digest(picture), digest(png))
        val jpeg = codec.decode(ImageSource.Bytes(codec.encode(picture, jpeg = true)), MAX_PIXELS)
        assertTrue(difference(picture, jpeg).mean < 4, "${difference(picture, jpeg)}")
    }

    private data class Difference(val largest: Int, val mean: Double)

    private fun difference(one: RgbImage, other: RgbImage): Difference {
        assertEquals(listOf(one.width, one.height), listOf(other.width, other.height))
        var largest = 0
        var sum = 0L
        for (index in one.pixels.indices) {
            val levels = abs((one.pixels[index].toInt() and 255) - (other.pixels[index].toInt() and 255))
            largest = max(largest, levels)
            sum += levels
        }
        return Difference(largest, sum.toDouble() / one.pixels.size)
    }

    private companion object {
        /** Coded with loss; or of 5 and 6 bits, which Android stretches to 8 in another way. */
        val INEXACT = setOf("webp-lossy.webp", "bmp-555.bmp", "bmp-565.bmp")
        const val MAX_PIXELS = 1_000_000L
    }
}
