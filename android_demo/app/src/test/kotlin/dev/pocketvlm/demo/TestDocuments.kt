package dev.pocketvlm.demo

import android.content.ContentProvider
import android.content.ContentValues
import android.database.Cursor
import android.database.MatrixCursor
import android.net.Uri
import android.os.ParcelFileDescriptor
import android.provider.OpenableColumns
import java.io.File
import java.io.FileNotFoundException

/** Another app's documents: what a picker would hand over. */
class TestDocuments : ContentProvider() {
    private val folder: File by lazy { File(requireNotNull(context).cacheDir, "other-app").apply { mkdirs() } }

    fun add(name: String, content: ByteArray): Uri {
        File(folder, name).writeBytes(content)
        return uri(name)
    }

    fun uri(name: String): Uri = Uri.Builder().scheme("content").authority(AUTHORITY).path(name).build()

    /** What another app has written so far. */
    fun content(name: String): String = File(folder, name).run { if (exists()) readText() else "" }

    override fun onCreate(): Boolean = true

    override fun openFile(uri: Uri, mode: String): ParcelFileDescriptor {
        val file = file(uri)
        if (mode == "r" && !file.exists()) throw FileNotFoundException(uri.toString())
        return ParcelFileDescriptor.open(file, ParcelFileDescriptor.parseMode(mode))
    }

    override fun query(uri: Uri, projection: Array<String>?, selection: String?, args: Array<String>?, order: String?): Cursor {
        val columns = projection ?: arrayOf(OpenableColumns.DISPLAY_NAME, OpenableColumns.SIZE)
        return MatrixCursor(columns).apply {
            addRow(columns.map { if (it == OpenableColumns.SIZE) file(uri).length() else file(uri).name })
        }
    }

    override fun getType(uri: Uri): String = "application/octet-stream"

    override fun insert(uri: Uri, values: ContentValues?): Uri? = null

    override fun update(uri: Uri, values: ContentValues?, selection: String?, args: Array<String>?): Int = 0

    override fun delete(uri: Uri, selection: String?, args: Array<String>?): Int = 0

    private fun file(uri: Uri) = File(folder, requireNotNull(uri.lastPathSegment))

    companion object {
        const val AUTHORITY = "other.app"
    }
}
