package dev.pocketvlm.desktop

import com.google.gson.JsonObject
import com.google.gson.JsonParser
import dev.pocketvlm.runtime.ImageException
import dev.pocketvlm.runtime.image.ImageSource
import dev.pocketvlm.runtime.image.RgbImage
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import java.io.File
import kotlin.math.abs
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

class ImageIoDecoderTest {
    private val fixtures = generateSequence(File(System.getProperty("user.dir")).absoluteFile) { it.parentFile }
        .map { it.resolve("tests/fixtures") }.first { it.isDirectory }
    private val files = JsonParser.parseString(fixtures.resolve("images.json").readText()).asJsonObject
        .getAsJsonArray("files").map { it.asJsonObject }
    private val decoder = ImageIoDecoder()

    private fun path(name: String) = fixtures.resolve("images/$name")

    private fun decode(file: File): RgbImage = decoder.decode(ImageSource.File(file), MAX_PIXELS)

    private fun decode(bytes: ByteArray): RgbImage = decoder.decode(ImageSource.Bytes(bytes), MAX_PIXELS)

    private val JsonObject.name get() = this["file"].asString

    @Test
    fun `lossless files become the pixels that Pillow makes of them`() {
        val cases = files.filter { it.has("digest") && "jpeg" !in it.name && "webp" !in it.name }
        assertTrue(cases.size > 80, "${cases.size} files")
        for (case in cases) {
            assertEquals(case["digest"].asString, decode(path(case.name)).digest(), case.name)
            assertEquals(case["digest"].asString, decode(path(case.name).readBytes()).digest(), case.name)
        }
    }

    @Test
    fun `JPEG differs from Pillow by a level at most`() {
        val cases = files.filter { it.name.startsWith("jpeg-") }
        assertTrue(cases.size > 15, "${cases.size} files")
        for (case in cases) {
            val found = decode(path(case.name))
            val expected = decode(path("${case.name}.png"))
            assertEquals(expected.width to expected.height, found.width to found.height, case.name)
            val largest = found.pixels.indices.maxOf {
                abs((found.pixels[it].toInt() and 0xff) - (expected.pixels[it].toInt() and 0xff))
            }
            assertTrue(largest <= 1, "${case.name}: $largest levels")
        }
    }

    @Test
    fun `WEBP is refused by name`() {
        for (case in files.filter { "webp" in it.name && it.has("digest") }) {
            val error = assertThrows<ImageException> { decode(path(case.name)) }
            assertEquals("${path(case.name)} is a WEBP image, which Java on a desktop cannot read", error.problem)
        }
    }

    @Test
    fun `what is wrong with pixels is said as in Python`() {
        val names = setOf(
            "half.jpg", "half-progressive.jpg", "half.bmp", "half.tif", "int32.tif", "float32.tif", "several.webp",
        )
        val cases = files.filter { it.has("error") && it.name.removePrefix("bad-") in names }
        assertEquals(names.size, cases.size)
        for (case in cases) {
            val error = assertThrows<ImageException>(case.name) { decode(path(case.name)) }
            val problem = error.problem.replace(path(case.name).path, "FILE")
            assertEquals(case["error"].asString, problem.replace(Regex("(is damaged[^:]*):.*"), "$1"), case.name)
            // What cannot be read here is not recommended.
            val hint = case["hint"].asString.replace("JPEG, WEBP, BMP", "JPEG, BMP")
            assertEquals(hint, error.hint, case.name)
        }
    }

    @Test
    fun `a JPEG without its last byte is incomplete, as in Python`() {
        for (name in listOf("jpeg-baseline-420.jpg", "jpeg-progressive-420-odd.jpg", "jpeg-grey.jpg")) {
            val content = path(name).readBytes()
            val error = assertThrows<ImageException>(name) { decode(content.copyOf(content.size - 1)) }
            assertTrue(error.problem.startsWith("the image data is damaged or incomplete"), error.problem)
        }
    }

    @Test
    fun `damaged bytes give an image or an ImageException`() {
        val random = java.util.Random(11)
        val names = files.map { it.name }.filter { it.substringAfterLast('.') in setOf("jpg", "bmp", "tif") }
        var images = 0
        repeat(3_000) { turn ->
            val content = path(names[turn % names.size]).readBytes()
            repeat(1 + random.nextInt(4)) { content[random.nextInt(minOf(content.size, 400))] = random.nextInt(256).toByte() }
            try {
                decode(if (turn % 3 == 0) content.copyOf(1 + random.nextInt(content.size)) else content)
                images++
            } catch (error: ImageException) {
                assertTrue('\n' !in error.problem && error.hint.isNotEmpty(), error.problem)
            }
        }
        assertTrue(images in 100..2_900, "$images of them could be read")
    }

    @Test
    fun `a name says nothing about the format`(@TempDir folder: File) {
        val file = folder.resolve("picture.txt")
        path("jpeg-grey.jpg").copyTo(file)
        assertEquals(decode(path("jpeg-grey.jpg")).digest(), decode(file).digest())
    }

    private companion object {
        const val MAX_PIXELS = 1_000_000L
    }
}
