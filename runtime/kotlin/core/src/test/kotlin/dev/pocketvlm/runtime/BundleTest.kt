package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.engine.Engine
import dev.pocketvlm.runtime.engine.EngineSession
import dev.pocketvlm.runtime.engine.Engines
import dev.pocketvlm.runtime.engine.FakeEngine
import dev.pocketvlm.runtime.engine.NpuFacts
import java.io.File
import java.nio.file.Files
import java.util.zip.CRC32
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import org.junit.jupiter.api.io.TempDir

class BundleTest {
    @TempDir
    lateinit var folder: File

    private val engines = Engines(mapOf("fake" to { FakeEngine() }))

    @Test
    fun `a whole bundle opens`() {
        val bundle = Bundle.open(FakeBundles.pristine("plain"))
        assertEquals("tiny", bundle.manifest.model.name)
        assertTrue(bundle.file("v/decoder.onnx").isFile)
        assertEquals("cpu", bundle.variant(engines).name)
        assertContains(assertFailsWith<BundleException> { bundle.file("other") }.problem, "does not list")
    }

    @Test
    fun `damage is refused and named`() {
        refused("v/decoder.onnx: sha256 differs from the manifest: the file is damaged") { flip(it.resolve("v/decoder.onnx")) }
        refused("v/decoder.onnx: 5 bytes, the manifest says") { it.resolve("v/decoder.onnx").writeText("short") }
        refused("tokenizer.json: missing from the bundle") { it.resolve("tokenizer.json").delete() }
        refused("v/more.onnx: not part of the bundle") { it.resolve("v/more.onnx").writeText("x") }
        refused("no manifest.json") { it.resolve("manifest.json").delete() }
        refused("manifest.json.sha256: missing from the bundle") { it.resolve("manifest.json.sha256").delete() }
        refused("manifest.json: sha256 differs from manifest.json.sha256") { flip(it.resolve("manifest.json")) }
        refused("manifest.json: sha256 differs from manifest.json.sha256") { flip(it.resolve("manifest.json.sha256")) }
        refused("manifest.json: not UTF-8 text") { bundle ->
            bundle.resolve("manifest.json").writeBytes(byteArrayOf(-1, -2))
            bundle.resolve("manifest.json.sha256").writeText(manifestHash(byteArrayOf(-1, -2)))
        }
        refused("manifest.json is larger than 4194304 bytes") { FakeBundles.writeManifest(it, " ".repeat(4_194_305)) }
        refused("manifest.json has schema 2.0; this reader knows 1.x") { bundle ->
            FakeBundles.reseal(bundle) { it["schema"].asJsonObject.addProperty("major", 2); it["schema"].asJsonObject.addProperty("minor", 0) }
        }
    }

    @Test
    fun `links and special files are refused`() {
        fun link(bundle: File, name: String) {
            val place = bundle.resolve(name)
            val away = folder.resolve("away").also { place.copyTo(it, overwrite = true) }
            place.delete()
            Files.createSymbolicLink(place.toPath(), away.toPath())
        }
        refused("tokenizer.json: a link; a bundle holds only files and folders") { link(it, "tokenizer.json") }
        refused("manifest.json: a link, not a file") { link(it, "manifest.json") }
        refused("v/linked: a link; a bundle holds only files and folders") {
            Files.createSymbolicLink(it.resolve("v/linked").toPath(), folder.toPath())
        }
        refused("v/pipe: neither a file nor a folder") {
            assertEquals(0, ProcessBuilder("mkfifo", it.resolve("v/pipe").path).start().waitFor())
        }
    }

    @Test
    fun `hashes can be left out, and nothing else`() {
        val bundle = FakeBundles.copy("plain", folder)
        flip(bundle.resolve("v/decoder.onnx"))
        assertEquals("tiny", Bundle.open(bundle, verify = false).manifest.model.name)
        bundle.resolve("v/decoder.onnx").appendText("x")
        assertFailsWith<BundleException> { Bundle.open(bundle, verify = false) }
    }

    @Test
    fun `what is no bundle at all`() {
        val text = folder.resolve("text").apply { writeText("x") }
        assertContains(problem(folder.resolve("nothing")), "no such bundle")
        assertContains(problem(text), "neither a bundle directory nor a whole zip")
        assertContains(problem(folder), "no manifest.json")
    }

    @Test
    fun `a zip is unpacked and removed on close`() {
        val zip = zip(FakeBundles.pristine("plain"))
        val place = folder.resolve("unpacked").apply { mkdir() }
        val bundle = Bundle.open(zip, unpackTo = place)
        assertEquals(place, bundle.directory.parentFile)
        assertTrue(bundle.file("v/decoder.onnx").isFile)
        bundle.close()
        assertEquals(emptyList(), place.list()!!.toList())
    }

    @Test
    fun `a damaged bundle in a zip is removed, too`() {
        val damaged = FakeBundles.copy("plain", folder).also { flip(it.resolve("v/decoder.onnx")) }
        val place = folder.resolve("unpacked").apply { mkdir() }
        val zip = zip(damaged)
        val error = assertFailsWith<BundleException> { Bundle.open(zip, unpackTo = place) }
        assertEquals("${zip.path}: v/decoder.onnx: sha256 differs from the manifest: the file is damaged", error.problem)
        assertEquals(emptyList(), place.list()!!.toList())
    }

    @Test
    fun `a hostile zip writes nothing`() {
        val place = folder.resolve("unpacked").apply { mkdir() }
        fun refused(message: String, vararg entries: Pair<String, String>, stored: Boolean = true) {
            val zip = folder.resolve("hostile.zip").also { it.delete() }
            ZipOutputStream(zip.outputStream()).use { out -> entries.forEach { (name, text) -> out.add(name, text.toByteArray(), stored) } }
            val error = assertFailsWith<BundleException>(message) { Bundle.open(zip, unpackTo = place).close() }
            assertContains(error.problem, message)
            assertEquals(emptyList(), place.list()!!.toList())
        }
        refused("unsafe file path", "../outside" to "x")
        refused("unsafe file path", "/absolute" to "x")
        refused("unsafe file path", "a\\b" to "x")
        refused("is a file and a folder", "a" to "x", "a/b" to "y")
        refused("is compressed or encrypted", "manifest.json" to "x".repeat(1000), stored = false)
        refused("no manifest.json", "a" to "x")
        assertFalse(folder.resolve("outside").exists())
    }

    @Test
    fun `a cut zip is refused`() {
        val whole = zip(FakeBundles.pristine("plain")).readBytes()
        val cut = folder.resolve("cut.zip").apply { writeBytes(whole.copyOf(whole.size / 2)) }
        assertContains(problem(cut), "neither a bundle directory nor a whole zip")
    }

    @Test
    fun `a place that takes nothing is an environment fault`() {
        val zip = zip(FakeBundles.pristine("plain"))
        val file = folder.resolve("file").apply { writeText("x") }
        val error = assertFailsWith<EnvironmentException> { Bundle.open(zip, unpackTo = file) }
        assertContains(error.problem, "cannot be unpacked")
    }

    @Test
    fun `work can be cancelled between files`() {
        class Enough : RuntimeException()
        assertFailsWith<Enough> { Bundle.open(FakeBundles.pristine("plain"), checkCancelled = { throw Enough() }) }
    }

    @Test
    fun `targets by name, and what runs here`() {
        val bundle = FakeBundles.copy("plain", folder)
        FakeBundles.reseal(bundle) { manifest ->
            val other = manifest.objects("variants").single().deepCopy()
            other.addProperty("name", "npu")
            other.addProperty("target", "other")
            other.addProperty("engine", "unheard-of")
            val both = com.google.gson.JsonArray().apply { add(other); manifest.getAsJsonArray("variants").forEach(::add) }
            manifest.add("variants", both)
        }
        val opened = Bundle.open(bundle)
        assertEquals("cpu", opened.variant(engines).name)
        assertEquals("cpu", opened.variant(engines, "fake-cpu").name)
        assertEquals("npu+cpu", opened.variant(engines, "npu+cpu").name)
        val unknown = assertFailsWith<UsageException> { opened.variant(engines, "third") }
        assertEquals("the bundle has no variant for 'third' (it has other, fake-cpu)", unknown.message)
        val none = assertFailsWith<EnvironmentException> { opened.variant(Engines(emptyMap())) }
        assertContains(none.problem, "no variant of the bundle runs here: npu: engine 'unheard-of' is not known; cpu: engine 'fake'")
        assertContains(none.hint, "export the checkpoint for ort-cpu")
    }

    @Test
    fun `binaries run on the device that they were compiled for`() {
        val bundle = FakeBundles.copy("plain", folder)
        FakeBundles.reseal(bundle) { manifest ->
            val variant = manifest.objects("variants").single()
            variant.add("device", Fixtures.json("manifests.json").getAsJsonObject("bases")["npu"].asJsonObject.objects("variants")[0]["device"])
            variant["stages"].asJsonObject["connector"].asJsonObject.addProperty("engine", "onnxruntime-qnn")
        }
        val opened = Bundle.open(bundle)
        fun with(facts: NpuFacts) = Engines(mapOf("fake" to { FakeEngine() }, "onnxruntime-qnn" to { Npu(facts) }))
        assertEquals("cpu", opened.variant(with(NpuFacts("SM8750", "2.50.1", false))).name)
        assertEquals("cpu", opened.variant(with(NpuFacts("SM8750", "2.51.0", false)), "cpu").name)
        fun refused(facts: NpuFacts, target: String? = null) =
            assertFailsWith<EnvironmentException> { opened.variant(with(facts), target) }.message!!
        assertContains(refused(NpuFacts("SM8650", "2.50.40", false)), "was compiled for SM8750 (architecture v79); this machine's SoC is SM8650")
        assertContains(refused(NpuFacts(null, "2.50.40", false)), "this machine's SoC is not known")
        assertContains(refused(NpuFacts("SM8750", "2.49.9", false)), "the runtime here is QAIRT 2.49.9, which is older")
        assertContains(refused(NpuFacts(null, "2.50.40", true)), "SM8750 is only emulated here")
        assertEquals("cpu", opened.variant(with(NpuFacts(null, "2.50.40", true)), "cpu").name)
    }

    private class Npu(override val npu: NpuFacts) : Engine {
        override val version: String get() = "0"

        override fun open(file: File, options: Map<String, String>, threads: Int?): EngineSession = error("not opened here")
    }

    private fun refused(message: String, damage: (File) -> Unit) {
        val bundle = FakeBundles.copy("plain", Files.createTempDirectory(folder.toPath(), "b").toFile()).also(damage)
        val error = assertFailsWith<BundleException>(message) { Bundle.open(bundle) }
        assertContains(error.problem, "${bundle.path}: $message")
        assertTrue(error.hint.isNotEmpty() || "larger" in message)
    }

    private fun problem(path: File): String = assertFailsWith<BundleException> { Bundle.open(path) }.problem

    private fun flip(file: File) {
        val content = file.readBytes()
        content[content.size / 2] = (content[content.size / 2].toInt() xor 1).toByte()
        file.writeBytes(content)
    }

    private fun zip(bundle: File): File {
        val zip = folder.resolve("${bundle.name}.zip")
        ZipOutputStream(zip.outputStream()).use { out ->
            for (file in bundle.walk().filter { it.isFile }) out.add(file.relativeTo(bundle).path, file.readBytes(), true)
        }
        return zip
    }

    private fun ZipOutputStream.add(name: String, content: ByteArray, stored: Boolean) {
        val entry = ZipEntry(name)
        if (stored) {
            entry.method = ZipEntry.STORED
            entry.size = content.size.toLong()
            entry.compressedSize = entry.size
            entry.crc = CRC32().apply { update(content) }.value
        }
        putNextEntry(entry)
        write(content)
        closeEntry()
    }
}
