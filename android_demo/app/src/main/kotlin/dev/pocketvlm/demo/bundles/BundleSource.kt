package dev.pocketvlm.demo.bundles

import android.content.ContentResolver
import android.net.Uri
import android.provider.OpenableColumns
import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.ProblemException
import dev.pocketvlm.demo.R
import dev.pocketvlm.runtime.BundleZip
import java.io.File
import java.io.FileNotFoundException
import java.io.InputStream
import java.io.OutputStream

/** Where a bundle comes from. */
interface BundleSource {
    /** What the user knows it by. */
    val name: String

    /** Bytes that the import will write; null where that is not known before. */
    fun bytes(): Long?

    /** Writes the bundle's files below [directory]; [written] is told about every block of so many bytes, and may throw. */
    fun copyTo(directory: File, written: (Int) -> Unit)

    /** The bundle is imported. */
    fun done() = Unit
}

/** A zip that the user picked with the system's file picker. */
class ZipDocument(private val resolver: ContentResolver, private val uri: Uri) : BundleSource {
    private val described: Pair<String?, Long?> by lazy(::describe)

    override val name: String get() = described.first ?: uri.lastPathSegment.orEmpty()

    override fun bytes(): Long? = described.second

    override fun copyTo(directory: File, written: (Int) -> Unit) = open().use { BundleZip(written).unpack(it, directory) }

    private fun open(): InputStream = try {
        resolver.openInputStream(uri) ?: throw FileNotFoundException(uri.toString())
    } catch (error: SecurityException) {
        throw ProblemException(Problem.Known(R.string.problem_document, R.string.problem_document_hint, listOf(name)), error)
    } catch (error: FileNotFoundException) {
        throw ProblemException(Problem.Known(R.string.problem_document, R.string.problem_document_hint, listOf(name)), error)
    }

    private fun describe(): Pair<String?, Long?> = try {
        resolver.query(uri, arrayOf(OpenableColumns.DISPLAY_NAME, OpenableColumns.SIZE), null, null, null)?.use { rows ->
            if (!rows.moveToFirst()) return@use null
            rows.getString(0) to if (rows.isNull(1)) null else rows.getLong(1)
        } ?: (null to null)
    } catch (_: SecurityException) {
        null to null
    }
}

/** A bundle that came by `adb push`: a directory or a zip. It goes away when it has been imported, for it is large. */
class PushedBundle(private val path: File) : BundleSource {
    override val name: String get() = path.name

    override fun bytes(): Long = path.walk().filter(File::isFile).sumOf(File::length)

    override fun copyTo(directory: File, written: (Int) -> Unit) {
        if (path.isFile) {
            path.inputStream().use { BundleZip(written).unpack(it, directory) }
            return
        }
        for (file in path.walk().filter(File::isFile)) {
            val target = File(directory, file.relativeTo(path).path)
            target.parentFile?.mkdirs()
            file.inputStream().use { source -> target.outputStream().use { copyBlocks(source, it, written) } }
        }
    }

    private fun copyBlocks(source: InputStream, target: OutputStream, written: (Int) -> Unit) {
        val block = ByteArray(BLOCK)
        while (true) {
            val count = source.read(block)
            if (count < 0) return
            target.write(block, 0, count)
            written(count)
        }
    }

    override fun done() {
        path.deleteRecursively()
    }

    private companion object {
        const val BLOCK = 1 shl 18
    }
}

/** The folder that `adb push` can reach, and the app without a permission. */
class PushedBundles(val folder: File?) {
    /** What lies there. `adb push` itself leaves no sign of being unfinished: the manifest tells when the import begins. */
    fun list(): List<PushedBundle> =
        folder?.listFiles().orEmpty().filter { it.isDirectory || it.extension == "zip" }.sorted().map(::PushedBundle)
}
