package dev.pocketvlm.demo

import android.content.Intent
import android.graphics.Bitmap
import android.view.View
import android.view.ViewGroup
import dev.pocketvlm.demo.about.AboutActivity
import dev.pocketvlm.demo.bench.BenchmarkActivity
import dev.pocketvlm.demo.bundles.BundlesActivity
import dev.pocketvlm.demo.device.SystemDevice
import dev.pocketvlm.demo.images.thumbnail
import java.io.ByteArrayOutputStream
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import org.robolectric.Robolectric
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config

/** The oldest Android that the app runs on: what came later must not be called there. */
@Config(sdk = [27])
class OldAndroidTest : AppTest() {
    @Test
    fun `pick a picture as a document, ask, read the answer`() {
        useBundle()
        val activity = chat().get()
        activity.view<View>(R.id.pick).performClick()
        assertEquals(Intent.ACTION_OPEN_DOCUMENT, shadowOf(activity).peekNextStartedActivityForResult().intent.action)
        activity.answerPicker(documents.add("screen.png", TestPictures.png(9, 4)))
        await("the picture") { activity.view<ViewGroup>(R.id.attachments).childCount == 1 }
        activity.ask("w7")
        await("the answer") { activity.lastTurn.text(R.id.turn_answer) == "w10w11" }
    }

    @Test
    fun `every other screen opens`() {
        useBundle()
        val bundles = Robolectric.buildActivity(BundlesActivity::class.java).setup().get()
        await("the bundle") { bundles.view<ViewGroup>(R.id.bundles).childCount == 1 }
        assertTrue(Robolectric.buildActivity(BenchmarkActivity::class.java).setup().get().view<View>(R.id.run).isEnabled)
        val about = Robolectric.buildActivity(AboutActivity::class.java).setup().get()
        await("the device") { "Phone 1" in about.text(R.id.about_device) }
    }

    @Test
    fun `photos stand upright`() {
        val bitmap = Bitmap.createBitmap(800, 400, Bitmap.Config.ARGB_8888)
        val jpeg = ByteArrayOutputStream().also { bitmap.compress(Bitmap.CompressFormat.JPEG, 90, it) }.toByteArray()
        val small = requireNotNull(thumbnail(jpeg))
        assertEquals(400 to 200, small.width to small.height)
        val turned = requireNotNull(thumbnail(withOrientation(jpeg, 6)))
        assertEquals(200 to 400, turned.width to turned.height)
        assertNull(thumbnail("no picture".toByteArray()))
    }

    @Test
    fun `nothing tells how hot the device is`() = assertNull(SystemDevice(app).thermal())

    /** The JPEG with an EXIF segment that says how the camera was held. */
    private fun withOrientation(jpeg: ByteArray, orientation: Int): ByteArray {
        val header = byteArrayOf(0, 42, 0, 0, 0, 8)
        val entry = byteArrayOf(0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation.toByte(), 0, 0, 0, 0, 0, 0)
        val exif = "Exif\u0000\u0000MM".toByteArray() + header + entry
        val length = exif.size + 2
        val segment = byteArrayOf(0xff.toByte(), 0xe1.toByte(), (length shr 8).toByte(), length.toByte()) + exif
        return jpeg.copyOf(2) + segment + jpeg.copyOfRange(2, jpeg.size)
    }
}
