package dev.pocketvlm.demo.images

import android.content.ContentResolver
import android.net.Uri
import android.provider.OpenableColumns
import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.ProblemException
import dev.pocketvlm.demo.R
import java.io.ByteArrayOutputStream
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/** Reads pictures that other apps hand over. */
class PictureReader(private val resolver: ContentResolver, private val mostBytes: Int = MOST_BYTES) {
    /**
     * The bytes behind [uri], and a thumbnail of them.
     *
     * @throws ProblemException they cannot be read, or are too many.
     */
    suspend fun read(uri: Uri): Picture = withContext(Dispatchers.IO) {
        val bytes = try {
            (resolver.openInputStream(uri) ?: throw FileNotFoundException("$uri")).use(::readAll)
        } catch (error: ProblemException) {
            throw error
        } catch (error: IOException) {
            throw unreadable(error)
        } catch (error: SecurityException) {
            // The permission that came with the address has ended.
            throw unreadable(error)
        }
        Picture(name(uri), bytes, thumbnail(bytes))
    }

    private fun readAll(stream: InputStream): ByteArray {
        val output = ByteArrayOutputStream()
        val block = ByteArray(1 shl 16)
        while (true) {
            val count = stream.read(block)
            if (count < 0) return output.toByteArray()
            output.write(block, 0, count)
            if (output.size() > mostBytes) {
                throw ProblemException(
                    Problem.Known(R.string.problem_picture_large, R.string.problem_picture_large_hint, listOf(mostBytes shr 20)),
                )
            }
        }
    }

    private fun name(uri: Uri): String {
        val shown = try {
            resolver.query(uri, arrayOf(OpenableColumns.DISPLAY_NAME), null, null, null)?.use { rows ->
                if (rows.moveToFirst()) rows.getString(0) else null
            }
        } catch (_: SecurityException) {
            null
        }
        return shown ?: uri.lastPathSegment.orEmpty()
    }

    private fun unreadable(cause: Exception) =
        ProblemException(Problem.Known(R.string.problem_picture, R.string.problem_picture_hint), cause)

    private companion object {
        /** No photo is larger; a video handed over as one is. */
        const val MOST_BYTES = 64 shl 20
    }
}
