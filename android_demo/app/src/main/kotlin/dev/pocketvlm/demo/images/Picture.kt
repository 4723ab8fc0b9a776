package dev.pocketvlm.demo.images

import android.graphics.Bitmap

/**
 * A picture that the user chose.
 *
 * @property bytes the file as it is: the runtime's codec decodes it.
 * @property thumbnail small, for the screen; null where Android cannot draw it.
 */
class Picture(val name: String, val bytes: ByteArray, val thumbnail: Bitmap?)
