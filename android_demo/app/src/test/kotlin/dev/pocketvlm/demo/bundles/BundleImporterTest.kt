package dev.pocketvlm.demo.bundles

import dev.pocketvlm.demo.ProblemException
import dev.pocketvlm.demo.TestBundle
import dev.pocketvlm.runtime.Bundle
import dev.pocketvlm.runtime.BundleException
import dev.pocketvlm.runtime.BundleZip
import java.io.ByteArrayInputStream
import java.io.File
import java.io.IOException
import java.util.concurrent.CancellationException
import java.util.zip.ZipEntry
import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class BundleImporterTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val root: File by lazy { temporary.newFolder("bundles") }
    private val store by lazy { BundleStore(root) }
    private val steps = mutableListOf<ImportStep>()
    private var free = Long.MAX_VALUE
    private val files = TestBundle().files()

    @Test
    fun `a zip is unpacked, verified and put into place`() {
        assertEquals("tiny", import(ZipBytes("tiny.zip", TestBundle.zip(files))))
        assertEquals(files.keys, filesOf(store.directory("tiny")))
        assertEquals(ImportStep.Installing, steps.last())
        assertTrue(ImportStep.Verifying in steps)
        val copied = steps.filterIsInstance<ImportStep.Copying>().last()
        assertEquals(files.values.sumOf { it.size }.toLong(), copied.bytes)
    }

    @Test
    fun `a pushed directory is moved`() {
        val pushed = temporary.newFolder("pushed", "tiny")
        TestBundle().writeTo(pushed)
        assertEquals("tiny", import(PushedBundle(pushed)))
        assertEquals(files.keys, filesOf(store.directory("tiny")))
        assertTrue("it is large: no second copy stays", !pushed.exists())
    }

    @Test
    fun `a pushed bundle that is still being pushed stays`() {
        val pushed = temporary.newFolder("pushed", "tiny")
        TestBundle().writeTo(pushed)
        File(pushed, "v/decoder.onnx").writeText("{")
        val error = assertThrows(BundleException::class.java) { import(PushedBundle(pushed)) }
        assertTrue(error.problem, error.problem.startsWith("tiny: v/decoder.onnx: 1 bytes, the manifest says"))
        assertTrue(pushed.exists())
        assertNothingLeft()
    }

    @Test
    fun `damaged bytes are found`() {
        val damaged = files + ("v/vision.onnx" to files.getValue("v/vision.onnx").copyOf().apply { this[5] = 'x'.code.toByte() })
        val error = assertThrows(BundleException::class.java) { import(ZipBytes("tiny.zip", TestBundle.zip(damaged))) }
        assertTrue(error.problem, error.problem.startsWith("tiny.zip: v/vision.onnx: sha256 differs"))
        assertNothingLeft()
    }

    @Test
    fun `what is no zip of a bundle is told apart`() {
        val cases = listOf(
            "no zip".toByteArray() to "no zip, or an empty one",
            TestBundle.zip(files).copyOf(4000) to "damaged zip: unexpected EOF",
            TestBundle.zip(mapOf("../evil" to byteArrayOf(1))) to "the zip: unsafe file path '../evil'",
            TestBundle.zip(mapOf("/evil" to byteArrayOf(1))) to "the zip: unsafe file path '/evil'",
            TestBundle.zip(files, ZipEntry.DEFLATED) to "manifest.json is compressed or encrypted",
            TestBundle.zip(mapOf("photo.jpg" to byteArrayOf(1))) to "picked: no manifest.json",
            TestBundle.ofNewerSchema().zip() to "picked: manifest.json has schema 2.0; this reader knows 1.x",
        )
        for ((bytes, problem) in cases) {
            val error = assertThrows(problem, BundleException::class.java) { import(ZipBytes("picked", bytes)) }
            assertEquals(problem, error.problem)
            assertNothingLeft()
        }
        assertTrue(!File(temporary.root, "evil").exists())
    }

    @Test
    fun `room is asked for before`() {
        free = 49_000_000
        val error = assertThrows(ProblemException::class.java) { import(ZipBytes("tiny.zip", TestBundle.zip(files))) }
        assertTrue(error.message, error.message.orEmpty().contains("tiny.zip, 50, 49"))
        assertTrue("nothing was copied", steps.isEmpty())
        assertNothingLeft()
    }

    @Test
    fun `a phone that becomes full says so`() {
        val full = ZipBytes("tiny.zip", TestBundle.zip(files)) { bytes ->
            if (bytes > 3000) {
                free = 1000
                throw IOException("No space left on device")
            }
        }
        val error = assertThrows(ProblemException::class.java) { import(full) }
        assertTrue(error.message, error.message.orEmpty().contains("No space left on device"))
        assertNothingLeft()
    }

    @Test
    fun `cancelling at any step leaves nothing`() {
        import(ZipBytes("tiny.zip", TestBundle.zip(files)))
        val last = steps.size
        for (step in 1..last) {
            store.delete("tiny")
            steps.clear()
            assertThrows(CancellationException::class.java) {
                import(ZipBytes("tiny.zip", TestBundle.zip(files))) { if (steps.size == step) throw CancellationException() }
            }
            assertNothingLeft()
        }
    }

    /** What lies on the disk after each step is what a process that is killed there leaves behind. */
    @Test
    fun `killed at any step, the next start finds the old bundle or the new one, whole`() {
        import(ZipBytes("tiny.zip", TestBundle { it.addProperty("pocketvlm", "old") }.zip()))
        steps.clear()
        val left = mutableListOf<File>()
        import(ZipBytes("tiny.zip", TestBundle { it.addProperty("pocketvlm", "new") }.zip())) {
            left += temporary.newFolder("left-${left.size}").also { root.copyRecursively(it, overwrite = true) }
        }
        left += root
        for (folder in left) {
            BundleStore(folder).recover()
            assertEquals(listOf("tiny"), folder.list().orEmpty().toList())
            val expected = if (folder == root) "new" else "old"
            Bundle.open(File(folder, "tiny")).use { assertEquals(expected, it.manifest.pocketvlm) }
        }
        assertTrue("it was killed in the middle of the copy, too", left.size > 5)
    }

    private fun import(source: BundleSource, onStep: () -> Unit = {}): String = runBlocking {
        BundleImporter(store) { free }.import(
            source,
            progress = {
                steps += it
                onStep()
            },
        )
    }

    private fun assertNothingLeft() = assertEquals(emptyList<String>(), root.list().orEmpty().toList())

    private fun filesOf(directory: File): Set<String> =
        directory.walk().filter(File::isFile).map { it.relativeTo(directory).path }.toSet()

    private class ZipBytes(
        override val name: String,
        private val bytes: ByteArray,
        private val check: (Long) -> Unit = {},
    ) : BundleSource {
        override fun bytes(): Long = bytes.size.toLong()

        override fun copyTo(directory: File, written: (Int) -> Unit) {
            var total = 0L
            BundleZip {
                total += it
                check(total)
                written(it)
            }.unpack(ByteArrayInputStream(bytes), directory)
        }
    }
}
