package dev.pocketvlm.runtime.image

import dev.pocketvlm.runtime.Fixtures
import dev.pocketvlm.runtime.ImageException
import dev.pocketvlm.runtime.ints
import dev.pocketvlm.runtime.objects
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNull
import kotlin.test.assertTrue

class DecodingTest {
    private val files = Fixtures.json("images.json").objects("files")
    private val readable = files.filter { it.has("digest") }

    @Test
    fun `PNG and GIF become the pixels that Pillow makes of them`() {
        val cases = readable.filter { it["file"].asString.substringAfterLast('.') in setOf("png", "gif") }
        assertTrue(cases.size > 50, "${cases.size} cases")
        for (case in cases) {
            val name = case["file"].asString
            val decoder = TestDecoder()
            val image = decoder.decode(name)
            assertNull(decoder.asked, name)
            val bytes = ImageSource.Bytes(fixtureImage(name).readBytes())
            assertEquals(case["digest"].asString, image.digest(), name)
            assertEquals(case["digest"].asString, decoder.decode(bytes, 1_000_000).digest(), name)
        }
    }

    @Test
    fun `headers of all formats give the size, and the picture is upright`() {
        for (case in readable) {
            val name = case["file"].asString
            val decoder = TestDecoder()
            val image = decoder.decode(name)
            assertEquals(case.getAsJsonArray("size").ints().toList(), listOf(image.width, image.height), name)
            val expected = Regex("orientation-(\\d)").find(name)?.groupValues?.get(1)?.toInt()
            if (expected != null && decoder.asked != null) assertEquals(expected, decoder.asked?.orientation, name)
        }
    }

    @Test
    fun `what the components of a JPEG are`() {
        val expected = mapOf(
            "jpeg-grey.jpg" to JpegColours.GREY, "jpeg-rgb.jpg" to JpegColours.RGB, "jpeg-cmyk.jpg" to JpegColours.CMYK,
            "jpeg-baseline-420.jpg" to JpegColours.YCC, "jpeg-mpo.jpg" to JpegColours.YCC,
        )
        for ((name, colours) in expected) {
            val decoder = TestDecoder()
            decoder.decode(name)
            assertEquals(colours, decoder.asked?.jpegColours, name)
            assertEquals(ImageFormat.JPEG, decoder.asked?.format)
        }
        assertEquals("xmp", 8, "jpeg-xmp.jpg")
        assertEquals("webp", 6, "webp-orientation.webp")
        assertEquals("tiff", 8, "tiff-orientation.tif")
    }

    private fun assertEquals(what: String, orientation: Int, name: String) {
        val decoder = TestDecoder()
        decoder.decode(name)
        assertEquals(orientation, decoder.asked?.orientation, what)
    }

    @Test
    fun `what is wrong with a file is said as in Python`() {
        // Pillow says less of these, and of pixels that only the platform looks at nothing is known here.
        val said = mapOf(
            "bad-checksum.png" to "FILE is damaged", "bad-half-header.png" to "FILE is damaged",
            "bad-no-pixels.png" to "FILE is damaged", "bad-zero.png" to "FILE has no pixels (0x10)",
            "bad-bomb.png" to "FILE has 2147483647x2147483647 pixels, more than the allowed 1000000",
        )
        val platform = setOf("half.jpg", "half-progressive.jpg", "half.bmp", "half.tif", "int32.tif", "float32.tif")
        val cases = files.filter { it.has("error") && it["file"].asString.removePrefix("bad-") !in platform }
        assertTrue(cases.size > 15)
        for (case in cases) {
            val name = case["file"].asString
            val file = fixtureImage(name)
            val expected = said[name] ?: case["error"].asString
            val error = assertThrows<ImageException>(name) { TestDecoder().decode(name) }
            assertEquals(expected, error.problem.replace(file.path, "FILE").replace(Regex("(is damaged[^:]*):.*"), "$1"), name)
            if (name !in said) assertEquals(case["hint"].asString, error.hint, name)
            val bytes = ImageSource.Bytes(file.readBytes())
            val other = assertThrows<ImageException>(name) { TestDecoder().decode(bytes, 1_000_000) }
            assertEquals(error.problem.replace(file.path, "the image data"), other.problem)
        }
    }

    @Test
    fun `paths that are no files`(@TempDir folder: File) {
        fun problem(file: File) =
            assertThrows<ImageException> { TestDecoder().decode(ImageSource.File(file), 100) }.problem
        assertEquals("no such image file: $folder/missing.png", problem(folder.resolve("missing.png")))
        assertEquals("$folder is a directory, not an image", problem(folder))
        assertTrue(problem(File("/dev/null")).endsWith("is not a regular file"))
    }

    @Test
    fun `pixels are only checked`() {
        val image = RgbImage(11, 10, ByteArray(330))
        assertEquals(image, TestDecoder().decode(ImageSource.Pixels(image), 110))
        val error = assertThrows<ImageException> { TestDecoder().decode(ImageSource.Pixels(image), 109) }
        assertEquals("the image has 11x10 pixels, more than the allowed 109", error.problem)
        val line = ImageSource.Pixels(RgbImage(2010, 10, ByteArray(60300)))
        assertTrue("200 times" in assertThrows<ImageException> { TestDecoder().decode(line, 100_000) }.problem)
        assertThrows<ImageException> { RgbImage(0, 4, ByteArray(0)) }
        assertThrows<ImageException> { RgbImage(2, 2, ByteArray(11)) }
    }

    @Test
    fun `sizes beyond every array are refused, and their product does not overflow`() {
        for (side in listOf(46_341L, 4_294_967_295L)) {
            assertThrows<ImageException> { CheckedImageDecoder.checkSize(side, side, "x", Long.MAX_VALUE) }
        }
        CheckedImageDecoder.checkSize(20_000, 30_000, "x", 600_000_000)
    }

    @Test
    fun `damaged bytes give an image or an ImageException`() {
        val random = java.util.Random(7)
        val names = files.map { it["file"].asString }.filter { "jpeg-" !in it || "orientation" in it }
        var images = 0
        repeat(6_000) { turn ->
            val content = fixtureImage(names[turn % names.size]).readBytes()
            if (content.isEmpty()) return@repeat
            repeat(1 + random.nextInt(4)) { content[random.nextInt(minOf(content.size, 400))] = random.nextInt(256).toByte() }
            val cut = if (turn % 3 == 0) content.copyOf(1 + random.nextInt(content.size)) else content
            try {
                val image = TestDecoder().decode(ImageSource.Bytes(cut), 1_000_000)
                assertTrue(image.width * image.height <= 1_000_000)
                images++
            } catch (error: ImageException) {
                assertTrue('\n' !in error.problem && error.hint.isNotEmpty(), error.problem)
            }
        }
        assertTrue(images in 100..5_900, "$images of them could be read")
    }
}
