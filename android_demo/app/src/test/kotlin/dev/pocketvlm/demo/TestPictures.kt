package dev.pocketvlm.demo

import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import java.io.ByteArrayOutputStream
import java.io.File

object TestPictures {
    /** A picture of one colour, as a PNG. */
    fun png(width: Int, height: Int, colour: Int = Color.rgb(60, 120, 180)): ByteArray {
        val bitmap = Bitmap.createBitmap(width, height, Bitmap.Config.ARGB_8888)
        Canvas(bitmap).drawColor(colour)
        return ByteArrayOutputStream().also { bitmap.compress(Bitmap.CompressFormat.PNG, 100, it) }.toByteArray()
    }

    /** A file of the repository. */
    fun file(path: String): File = File(System.getProperty("pocketvlm.repository"), path)
}
