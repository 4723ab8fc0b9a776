package dev.pocketvlm.runtime

import com.google.gson.JsonArray
import com.google.gson.JsonElement
import com.google.gson.JsonNull
import com.google.gson.JsonObject
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

class ManifestTest {
    private val vectors = Fixtures.json("manifests.json")

    @Test
    fun `the bases are read as they are written`() {
        val manifest = ManifestReader.parse(vectors.getAsJsonObject("bases")["npu"].toString())
        val variant = manifest.variants.single()
        assertEquals(SchemaVersion(1, 0), manifest.schema)
        assertEquals(listOf(Grid(1, 1), Grid(1, 2)), manifest.tiling.grids.take(2))
        assertEquals(DeviceSpec("SM8750", 69, 79, "2.50.40"), variant.device)
        assertEquals(
            listOf(Dimension.Named("B"), Dimension.Fixed(3), Dimension.Fixed(4), Dimension.Fixed(4)),
            variant.stages.getValue("patch_embed").inputs[0].shape,
        )
        assertEquals(EngineChoice("onnxruntime-qnn", mapOf("soc_model" to "69", "htp_arch" to "79")), variant.engineOf("connector"))
        assertEquals(EngineChoice("fake", emptyMap()), variant.engineOf("decode"))
        assertEquals(KvCacheSpec(TensorType.INT8, CacheProtocol.IN_PLACE, 2, 2, 2, 64, 8), variant.kvCache)
        assertEquals(mapOf("user" to "<user> "), manifest.prompt.start)
    }

    @Test
    fun `both readers accept and refuse the same`() {
        val changes = vectors.getAsJsonArray("changes").map { it.asJsonArray }
        assertTrue(changes.size > 500)
        val differences = changes.mapNotNull { change ->
            val wanted = change[4].takeUnless { it is JsonNull }?.asString
            // Python's integers have no end, and some of them mean nothing to it.
            val found = refusal(changed(change).toString())?.takeUnless { wanted == null && it.endsWith("is too large") }
            if ((wanted == null) == (found == null)) null else "$change\n  found $found"
        }
        assertEquals(emptyList(), differences)
    }

    @Test
    fun `what is wrong is named by its place`() {
        val message = refusal(changed("plain", "variants.0.kv_cache.capacity", "x").toString())
        assertEquals("manifest.json.variants[0].kv_cache.capacity: expected a whole number, found \"x\"", message)
        assertContains(refusal(changed("plain", "tiling.policy", "x").toString())!!, "manifest.json.tiling.policy: 'x' is none of")
        assertContains(
            assertFailsWith<BundleException> { ManifestReader.parse(changed("plain", "schema.major", "2").toString()) }.hint,
            "update PocketVLM",
        )
    }

    @Test
    fun `what is no manifest is refused`() {
        val huge = " ".repeat(Manifest.MAX_BYTES + 1)
        val nested = "[".repeat(100_000)
        val texts = listOf("", "{", "[]", "null", nested, huge, "{\"schema\": {\"major\": \"1\"}}", "{} {}", "{'a': 1}", "{\"a\": NaN}")
        for (text in texts) assertContains(refusal(text) ?: "accepted ${text.take(20)}", "manifest.json")
    }

    @Test
    fun `a newer minor version may hold more`() {
        val raw = vectors.getAsJsonObject("bases")["plain"].deepCopy().asJsonObject
        raw["schema"].asJsonObject.addProperty("minor", 7)
        raw.addProperty("surplus", 1)
        raw.getAsJsonArray("variants")[0].asJsonObject.addProperty("surplus", 1)
        assertEquals(7, ManifestReader.parse(raw.toString()).schema.minor)
        raw.remove("tokenizer")
        assertContains(refusal(raw.toString())!!, "'tokenizer' is missing")
    }

    private fun refusal(text: String): String? = try {
        ManifestReader.parse(text)
        null
    } catch (error: BundleException) {
        error.problem
    }

    private fun changed(base: String, path: String, value: String): JsonElement {
        val change = JsonArray()
        change.add(base)
        change.add(JsonArray().apply { path.split(".").forEach { key -> key.toIntOrNull()?.let(::add) ?: add(key) } })
        change.add("set")
        change.add(value.toIntOrNull()?.let { com.google.gson.JsonPrimitive(it) } ?: com.google.gson.JsonPrimitive(value))
        return changed(change)
    }

    private fun changed(change: JsonArray): JsonElement {
        val raw = vectors.getAsJsonObject("bases")[change[0].asString].deepCopy()
        val path = change[1].asJsonArray.toList()
        val parent = path.dropLast(1).fold(raw, ::child)
        val key = path.last()
        when (change[2].asString) {
            "delete" -> if (parent is JsonObject) parent.remove(key.asString) else parent.asJsonArray.remove(key.asInt)
            "add" -> child(parent, key).asJsonObject.add("surplus", change[3])
            else -> if (parent is JsonObject) parent.add(key.asString, change[3]) else parent.asJsonArray.set(key.asInt, change[3])
        }
        return raw
    }

    private fun child(parent: JsonElement, key: JsonElement): JsonElement =
        if (parent is JsonObject) parent[key.asString] else parent.asJsonArray[key.asInt]
}
