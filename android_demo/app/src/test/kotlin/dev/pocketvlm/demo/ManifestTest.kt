package dev.pocketvlm.demo

import android.content.Intent
import android.content.pm.PackageManager
import dev.pocketvlm.demo.chat.ChatActivity
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test

class ManifestTest : AppTest() {
    private val info by lazy {
        val flags = PackageManager.GET_PERMISSIONS or PackageManager.GET_ACTIVITIES or PackageManager.GET_PROVIDERS
        app.packageManager.getPackageInfo(app.packageName, flags)
    }

    @Test
    fun `no permission is asked for, not even for the network`() {
        assertEquals(emptyList<String>(), info.requestedPermissions.orEmpty().toList())
    }

    @Test
    fun `only the chat is open to other apps`() {
        assertEquals(listOf(ChatActivity::class.java.name), info.activities.orEmpty().filter { it.exported }.map { it.name })
        assertFalse(info.providers.orEmpty().single().exported)
        assertEquals("dev.pocketvlm.demo", app.packageName)
    }

    @Test
    fun `the share sheet finds the chat for images alone`() {
        fun found(type: String) =
            app.packageManager.queryIntentActivities(Intent(Intent.ACTION_SEND).setType(type), 0).map { it.activityInfo.name }
        assertEquals(listOf(ChatActivity::class.java.name), found("image/jpeg"))
        assertEquals(emptyList<String>(), found("video/mp4"))
    }

    @Test
    fun `bundles are in no backup`() {
        assertTrue(app.container.store.directory("x").path.startsWith(app.noBackupFilesDir.path))
        for (rules in listOf(R.xml.backup_rules, R.xml.data_extraction_rules)) {
            app.resources.getXml(rules).use { xml ->
                val excluded = generateSequence { xml.next() }.takeWhile { it != org.xmlpull.v1.XmlPullParser.END_DOCUMENT }
                    .filter { it == org.xmlpull.v1.XmlPullParser.START_TAG && xml.name == "exclude" }
                    .map { xml.getAttributeValue(null, "domain") }.toList()
                assertTrue(excluded.isNotEmpty() && excluded.all { it == "external" })
            }
        }
    }
}
