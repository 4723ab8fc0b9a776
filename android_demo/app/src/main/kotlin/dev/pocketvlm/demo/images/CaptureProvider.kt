package dev.pocketvlm.demo.images

import android.content.ContentProvider
import android.content.ContentValues
import android.content.Context
import android.database.Cursor
import android.database.MatrixCursor
import android.net.Uri
import android.os.ParcelFileDescriptor
import android.provider.OpenableColumns
import java.io.File
import java.io.FileNotFoundException

/**
 * Files that the camera app writes photos to, in the app's cache. Not exported: each address works for the app that it is granted
 * to.
 */
class CaptureProvider : ContentProvider() {
    override fun onCreate(): Boolean = true

    override fun openFile(uri: Uri, mode: String): ParcelFileDescriptor =
        ParcelFileDescriptor.open(find(uri) ?: throw FileNotFoundException("$uri"), ParcelFileDescriptor.parseMode(mode))

    override fun getType(uri: Uri): String = "image/jpeg"

    override fun query(
        uri: Uri,
        projection: Array<String>?,
        selection: String?,
        selectionArgs: Array<String>?,
        sortOrder: String?,
    ): Cursor {
        val columns = projection ?: arrayOf(OpenableColumns.DISPLAY_NAME, OpenableColumns.SIZE)
        val file = find(uri) ?: return MatrixCursor(columns)
        val row = columns.map {
            when (it) {
                OpenableColumns.DISPLAY_NAME -> file.name
                OpenableColumns.SIZE -> file.length()
                else -> null
            }
        }
        return MatrixCursor(columns).apply { addRow(row) }
    }

    override fun insert(uri: Uri, values: ContentValues?): Uri? = null

    override fun update(uri: Uri, values: ContentValues?, selection: String?, selectionArgs: Array<String>?): Int = 0

    override fun delete(uri: Uri, selection: String?, selectionArgs: Array<String>?): Int = 0

    private fun find(uri: Uri): File? {
        val name = uri.pathSegments.singleOrNull()?.takeIf(NAME::matches) ?: return null
        return context?.let { File(folder(it), name) }
    }

    companion object {
        private val NAME = Regex("photo-[0-9]+\\.jpg")

        /** An address for one more photo; earlier ones have been read and go. */
        fun freshUri(context: Context): Uri {
            val folder = folder(context)
            folder.deleteRecursively()
            folder.mkdirs()
            val file = File(folder, "photo-${System.currentTimeMillis()}.jpg")
            file.createNewFile()
            return Uri.Builder().scheme("content").authority("${context.packageName}.captures").path(file.name).build()
        }

        private fun folder(context: Context) = File(context.cacheDir, "captures")
    }
}
