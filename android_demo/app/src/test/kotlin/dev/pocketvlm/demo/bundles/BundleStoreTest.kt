package dev.pocketvlm.demo.bundles

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class BundleStoreTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val root: File by lazy { temporary.newFolder("bundles") }
    private val store by lazy { BundleStore(root) }

    @Before
    fun oneBundle() = write("old one", "demo")

    @Test
    fun `a part becomes the bundle by its name`() {
        val part = store.freshPart("other")
        File(part, "manifest.json").writeText("new")
        assertEquals("not yet", listOf("demo"), store.names())
        store.install(part, "other")
        assertEquals(listOf("demo", "other"), store.names())
        assertEquals("new", content("other"))
        assertFalse(part.exists())
    }

    @Test
    fun `a bundle of the same name is replaced`() {
        val part = store.freshPart("demo")
        File(part, "manifest.json").writeText("new")
        store.install(part, "demo")
        assertEquals(listOf("demo"), root.list().orEmpty().toList())
        assertEquals("new", content("demo"))
    }

    @Test
    fun `killed while copying`() {
        write("half", "demo.part")
        store.recover()
        assertEquals(listOf("demo"), root.list().orEmpty().toList())
        assertEquals("old one", content("demo"))
    }

    @Test
    fun `killed between moving the old bundle away and the new one in`() {
        File(root, "demo").renameTo(File(root, "demo.old"))
        write("new, verified", "demo.part")
        store.recover()
        assertEquals(listOf("demo"), root.list().orEmpty().toList())
        assertEquals("old one", content("demo"))
    }

    @Test
    fun `killed before the old bundle was deleted`() {
        write("older", "demo.old")
        store.recover()
        assertEquals(listOf("demo"), root.list().orEmpty().toList())
        assertEquals("old one", content("demo"))
    }

    @Test
    fun `deleting removes every file`() {
        store.delete("demo")
        assertEquals(emptyList<String>(), root.list().orEmpty().toList())
        assertTrue(store.names().isEmpty())
    }

    @Test
    fun `names are those of directories, whatever a file was called`() {
        val names = listOf("My model (1).zip", "../../etc", "demo.part", "модель", "a.old.zip", "x".repeat(300))
        val safe = names.map(BundleStore::safeName)
        assertEquals(listOf("My-model-1", "etc", "bundle-demo.part-1", "bundle--1", "bundle-a.old-1", "x".repeat(80)), safe)
        assertTrue(safe.none { '/' in it || it.endsWith(".part") || it.endsWith(".old") })
    }

    private fun write(text: String, directory: String) =
        File(root, directory).apply { mkdirs() }.resolve("manifest.json").writeText(text)

    private fun content(name: String) = File(store.directory(name), "manifest.json").readText()
}
