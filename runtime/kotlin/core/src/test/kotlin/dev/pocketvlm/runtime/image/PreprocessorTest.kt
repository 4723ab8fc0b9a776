package dev.pocketvlm.runtime.image

import com.google.gson.JsonObject
import dev.pocketvlm.runtime.Arrangement
import dev.pocketvlm.runtime.Fit
import dev.pocketvlm.runtime.Fixtures
import dev.pocketvlm.runtime.Grid
import dev.pocketvlm.runtime.ImageSpec
import dev.pocketvlm.runtime.ImageTokensSpec
import dev.pocketvlm.runtime.Thumbnail
import dev.pocketvlm.runtime.TilingSpec
import dev.pocketvlm.runtime.enum
import dev.pocketvlm.runtime.ints
import dev.pocketvlm.runtime.objects
import dev.pocketvlm.runtime.tiling.TilePlan
import dev.pocketvlm.runtime.tiling.TilePlanner
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.security.MessageDigest
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue

class PreprocessorTest {
    private val photographs = HashMap<String, RgbImage>()

    private fun photograph(name: String) = photographs.getOrPut(name) { TestDecoder().decode("$name.png") }

    private fun doubles(spec: JsonObject, name: String) = spec.getAsJsonArray(name).map { it.asDouble }

    private fun imageSpec(spec: JsonObject) = ImageSpec(
        doubles(spec, "mean"), doubles(spec, "std"), spec["rescale"].asDouble, spec.enum("resample"),
        spec.getAsJsonArray("background").ints().toList(),
    )

    private fun sha256(bytes: ByteArray) =
        MessageDigest.getInstance("SHA-256").digest(bytes).joinToString("") { "%02x".format(it) }

    private fun littleEndian(values: FloatBuffer): ByteArray {
        val bytes = ByteBuffer.allocate(values.remaining() * 4).order(ByteOrder.LITTLE_ENDIAN)
        bytes.asFloatBuffer().put(values.duplicate())
        return bytes.array()
    }

    private fun part(image: RgbImage, box: IntArray): RgbImage {
        val (left, top, width, height) = box
        val pixels = ByteArray(width * height * 3) { index ->
            val (row, rest) = index / (width * 3) to index % (width * 3)
            image.pixels[((top + row) * image.width + left) * 3 + rest]
        }
        return RgbImage(width, height, pixels)
    }

    @Test
    fun `pixels and floats are those of Pillow and numpy, bit for bit`() {
        val cases = Fixtures.json("images.json").objects("tiles")
        assertTrue(cases.size > 100)
        for (case in cases) {
            val image = part(photograph(case["image"].asString), case.getAsJsonArray("box").ints())
            val (cols, rows) = case.getAsJsonArray("grid").ints()
            val size = case["tile_size"].asInt
            val fit = case.enum<Fit>("fit")
            val spec = imageSpec(case.getAsJsonObject("image_spec"))
            val tiling = TilingSpec("relaxed_aspect", size, listOf(Grid(cols, rows)), Thumbnail.NEVER, fit = fit)
            val plan = TilePlan(Grid(cols, rows), cols * rows, case["thumbnail"].asBoolean, 1)
            val canvas = ImagePreprocessor.fit(image, cols * size, rows * size, fit, spec)
            assertEquals(case["canvas"].asString, sha256(canvas.pixels), "canvas of $case")
            val tiles = ImagePreprocessor.makeTiles(image, plan, tiling, spec, case["thumbnail_first"].asBoolean).floats()
            for (sample in case.getAsJsonArray("samples")) {
                val (place, bits) = sample.asJsonArray.let { it[0].asInt to it[1].asString }
                assertEquals(bits, "%08x".format(tiles[place].toRawBits()), "float $place of $case")
            }
            assertEquals(case["tiles"].asString, sha256(littleEndian(tiles)), "tiles of $case")
            assertTrue(tiles.isDirect && tiles.order() == ByteOrder.nativeOrder() && tiles.position() == 0)
            assertEquals(plan.encodedTiles * 3 * size * size, tiles.remaining())
        }
    }

    @Test
    fun `a picture of the right size is not resampled`() {
        val image = photograph("astronaut")
        val spec = ImageSpec(listOf(0.0, 0.0, 0.0), listOf(1.0, 1.0, 1.0), 1.0)
        val tiling = TilingSpec("single", image.width, listOf(Grid(1, 1)), Thumbnail.NEVER)
        val plan = TilePlanner.plan(240, 240, tiling, ImageTokensSpec(1, 1, Arrangement.TILE_BY_TILE))
        val tiles = ImagePreprocessor.makeTiles(image, plan, tiling, spec, thumbnailFirst = true).floats()
        for (index in 0 until 240 * 240 * 3) {
            val (channel, pixel) = index / 57600 to index % 57600
            assertEquals((image.pixels[pixel * 3 + channel].toInt() and 0xff).toFloat(), tiles[index])
        }
    }

    @Test
    fun `a digest is that of the size and the pixels`() {
        val pixels = ByteArray(6) { it.toByte() }
        assertEquals(sha256("2x1\n".toByteArray() + pixels), RgbImage(2, 1, pixels).digest())
        assertTrue(RgbImage(2, 1, pixels).digest() != RgbImage(1, 2, pixels).digest())
    }
}
