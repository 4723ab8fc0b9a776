package dev.pocketvlm.demo.device

import dev.pocketvlm.demo.AppTest
import dev.pocketvlm.demo.TestPictures
import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test

class QualcommNpuTest : AppTest() {
    @Test
    fun `the variant without Qualcomm's libraries has none`() {
        app.applicationInfo.nativeLibraryDir = temporary.newFolder().path
        assertNull(QualcommNpu.find(app))
    }

    @Test
    fun `the variant with them tells of their version`() {
        val folder = temporary.newFolder()
        File(folder, "libQnnHtp.so").createNewFile()
        app.applicationInfo.nativeLibraryDir = folder.path
        val found = requireNotNull(QualcommNpu.find(app))
        assertEquals("libQnnHtp.so", found.backend)
        assertEquals(false, found.facts.emulated)
        val versions = TestPictures.file("android_demo/gradle/libs.versions.toml").readText()
        assertTrue("qnnRuntime = \"${found.facts.qairt}\"" in versions)
    }
}
