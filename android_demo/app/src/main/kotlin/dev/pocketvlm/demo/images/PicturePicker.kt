package dev.pocketvlm.demo.images

import android.app.Activity
import android.content.ActivityNotFoundException
import android.content.ClipData
import android.content.Intent
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.provider.MediaStore

/**
 * Asks other apps for pictures: the system's photo picker and the camera app. Neither needs a permission.
 *
 * To be told of [onActivityResult], and to keep its state in that of the activity, for the camera app may push this one out of
 * memory.
 */
class PicturePicker(private val activity: Activity, savedState: Bundle?) {
    private var captured: Uri? = savedState?.getString(CAPTURED)?.let(Uri::parse)

    /** Opens the photo picker; false where the device has none. */
    fun pick(): Boolean = start(pickIntent(), PICK)

    /** Opens the camera app; false where the device has none. */
    fun takePhoto(): Boolean {
        val target = CaptureProvider.freshUri(activity)
        captured = target
        val intent = Intent(MediaStore.ACTION_IMAGE_CAPTURE).putExtra(MediaStore.EXTRA_OUTPUT, target)
        // Grants go along with clip data.
        intent.clipData = ClipData.newRawUri(null, target)
        intent.addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION or Intent.FLAG_GRANT_WRITE_URI_PERMISSION)
        return start(intent, CAPTURE)
    }

    fun saveState(state: Bundle) = state.putString(CAPTURED, captured?.toString())

    /** The pictures that an activity's result brings; none if the user went back. */
    fun onActivityResult(request: Int, result: Int, data: Intent?): List<Uri> = when {
        result != Activity.RESULT_OK -> emptyList()
        request == CAPTURE -> listOfNotNull(captured)
        request == PICK -> clipUris(data).ifEmpty { listOfNotNull(data?.data) }
        else -> emptyList()
    }

    private fun start(intent: Intent, request: Int): Boolean = try {
        activity.startActivityForResult(intent, request)
        true
    } catch (_: ActivityNotFoundException) {
        false
    }

    private fun pickIntent(): Intent =
        if (Build.VERSION.SDK_INT >= 33) {
            Intent(MediaStore.ACTION_PICK_IMAGES).setType(IMAGES).putExtra(MediaStore.EXTRA_PICK_IMAGES_MAX, MOST)
        } else {
            Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType(IMAGES)
                .putExtra(Intent.EXTRA_ALLOW_MULTIPLE, true)
        }

    companion object {
        const val PICK = 1
        const val CAPTURE = 2
        private const val MOST = 4
        private const val IMAGES = "image/*"
        private const val CAPTURED = "captured"

        /** The pictures that the share sheet brings. */
        @Suppress("DEPRECATION") // The typed methods came with Android 13.
        fun shared(intent: Intent): List<Uri> = when (intent.action) {
            Intent.ACTION_SEND -> listOfNotNull(intent.getParcelableExtra<Uri>(Intent.EXTRA_STREAM))
            Intent.ACTION_SEND_MULTIPLE -> intent.getParcelableArrayListExtra<Uri>(Intent.EXTRA_STREAM).orEmpty()
            else -> emptyList()
        }

        private fun clipUris(data: Intent?): List<Uri> {
            val clip = data?.clipData ?: return emptyList()
            return (0 until clip.itemCount).mapNotNull { clip.getItemAt(it).uri }
        }
    }
}
