package dev.pocketvlm.runtime.tiling

import com.google.gson.JsonObject
import dev.pocketvlm.runtime.Arrangement
import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.Fixtures
import dev.pocketvlm.runtime.Grid
import dev.pocketvlm.runtime.ImageException
import dev.pocketvlm.runtime.ImageTokensSpec
import dev.pocketvlm.runtime.Thumbnail
import dev.pocketvlm.runtime.TilingSpec
import dev.pocketvlm.runtime.enum
import dev.pocketvlm.runtime.ints
import dev.pocketvlm.runtime.objects
import org.junit.jupiter.api.assertThrows
import java.nio.FloatBuffer
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertTrue

class TilingTest {
    private val fixture = Fixtures.json("tiling.json")

    private fun grids(spec: JsonObject) = spec.getAsJsonArray("grids").map { pair ->
        pair.asJsonArray.ints().let { (cols, rows) -> Grid(cols, rows) }
    }

    private fun tiling(spec: JsonObject) = TilingSpec(
        spec["policy"].asString, spec["tile_size"].asInt, grids(spec), spec.enum("thumbnail"), spec["alpha"].asDouble,
    )

    private fun tokens(spec: JsonObject) = ImageTokensSpec(
        spec["rows"].asInt, spec["cols"].asInt, spec.enum("arrangement"), spec["thumbnail_first"].asBoolean,
        spec["newline"].asString,
    )

    @Test
    fun `plans are those of the Python runtime`() {
        val sizes = fixture.getAsJsonArray("sizes").map { it.asJsonArray.ints() }
        assertTrue(sizes.size > 200)
        val policies = HashSet<String>()
        for (entry in fixture.objects("plans")) {
            val tiling = tiling(entry.getAsJsonObject("tiling"))
            val tokens = tokens(entry.getAsJsonObject("tokens"))
            val expected = entry.getAsJsonArray("plans").map { it.asJsonArray.ints() }
            assertEquals(sizes.size, expected.size)
            policies += tiling.policy
            for ((size, wanted) in sizes zip expected) {
                val (width, height) = size
                val (cols, rows, thumbnail, count) = wanted
                val plan = TilePlanner.plan(width, height, tiling, tokens)
                val message = "${width}x$height with $tiling"
                assertEquals(TilePlan(Grid(cols, rows), cols * rows, thumbnail == 1, count), plan, message)
                assertEquals(cols * rows + thumbnail, plan.encodedTiles, message)
            }
        }
        assertEquals(GRID_POLICIES.keys, policies)
    }

    @Test
    fun `token orders are those of the Python runtime`() {
        val size = 3
        for (entry in fixture.objects("orders")) {
            val (cols, rows) = entry.getAsJsonArray("grid").ints()
            val tokens = tokens(entry.getAsJsonObject("tokens"))
            val order = entry.getAsJsonArray("order").ints()
            val thumbnail = entry["thumbnail"].asBoolean
            val plan = TilePlan(Grid(cols, rows), cols * rows, thumbnail, order.size)
            val perTile = tokens.rows * tokens.cols
            val values = FloatArray(plan.encodedTiles * perTile * size) { it.toFloat() }
            // Values before the position belong to someone else.
            val features = FloatBuffer.wrap(floatArrayOf(7f, 7f) + values).apply { position(2) }
            val newline = if (tokens.newline.isEmpty()) null else FloatArray(size) { (it - size).toFloat() }
            val shape = longArrayOf(plan.encodedTiles.toLong(), perTile.toLong(), size.toLong())
            val expected = FloatArray(order.size * size) { (order[it / size] * size + it % size).toFloat() }
            assertContentEquals(expected, TokenArranger.arrange(features, shape, plan, tokens, newline), "$entry")
            assertEquals(2, features.position())
        }
    }

    @Test
    fun `features that do not fit are refused`() {
        val plan = TilePlan(Grid(2, 1), 2, true, 12)
        fun arrange(shape: LongArray, newline: FloatArray?, file: String, count: Long = shape.reduce(Long::times)) {
            val tokens = ImageTokensSpec(2, 2, Arrangement.PICTURE_ROWS, newline = file)
            TokenArranger.arrange(FloatBuffer.allocate(count.toInt()), shape, plan, tokens, newline)
        }
        assertThrows<BundleException> { arrange(longArrayOf(2, 4, 8), null, "") }
        assertThrows<BundleException> { arrange(longArrayOf(3, 5, 8), null, "") }
        assertThrows<BundleException> { arrange(longArrayOf(12, 8), null, "") }
        assertThrows<BundleException> { arrange(longArrayOf(3, 4, 8), null, "", count = 95) }
        assertThrows<BundleException> { arrange(longArrayOf(3, 4, 8), null, "newline.bin") }
        assertThrows<BundleException> { arrange(longArrayOf(3, 4, 8), FloatArray(8), "") }
        val error = assertThrows<BundleException> { arrange(longArrayOf(3, 4, 8), FloatArray(7), "newline.bin") }
        assertTrue("newline embedding of 7 values" in error.problem, error.problem)
    }

    @Test
    fun `an image without pixels and an unknown policy are refused`() {
        val tokens = ImageTokensSpec(14, 14, Arrangement.TILE_BY_TILE)
        val tiling = TilingSpec("single", 384, listOf(Grid(1, 1)), Thumbnail.NEVER)
        for ((width, height) in listOf(0 to 5, 5 to 0, -1 to 3)) {
            val error = assertThrows<ImageException> { TilePlanner.plan(width, height, tiling, tokens) }
            assertEquals("an image of ${width}x$height pixels cannot be tiled", error.problem)
        }
        val unknown = tiling.copy(policy = "hexagons")
        assertTrue("hexagons" in assertThrows<BundleException> { TilePlanner.plan(5, 5, unknown, tokens) }.problem)
        val many = tiling.copy(policy = "internvl", grids = listOf(Grid(100, 100)))
        val fine = tokens.copy(rows = 4096, cols = 4096)
        assertThrows<BundleException> { TilePlanner.plan(5, 5, many, fine) }
    }
}
