package dev.pocketvlm.demo.bundles

import dev.pocketvlm.runtime.BundleException
import java.io.EOFException
import java.io.File
import java.io.IOException
import java.io.InputStream
import java.io.OutputStream
import java.util.zip.ZipEntry
import java.util.zip.ZipException
import java.util.zip.ZipInputStream

/**
 * Unpacks a bundle's zip as it comes in, so that the room is needed once only: `Bundle.open` takes a zip, too, but needs it as a
 * file. Whether the files are those of the manifest is checked afterwards; here only that none lands outside the directory and
 * that they are as large as the zip.
 *
 * @param written is told about every block of so many bytes; it may throw.
 */
class ZipUnpacker(private val written: (Int) -> Unit) {
    fun unpack(stream: InputStream, directory: File) {
        try {
            ZipInputStream(stream).use { zip ->
                val names = HashSet<String>()
                while (true) {
                    val entry = zip.nextEntry ?: break
                    if (entry.isDirectory) continue
                    check(entry, names)
                    val target = File(directory, entry.name)
                    target.parentFile?.mkdirs()
                    target.outputStream().use { copyBlocks(zip, it, written) }
                }
                if (names.isEmpty()) throw BundleException("no zip, or an empty one", "pick the zip of a bundle")
            }
        } catch (error: ZipException) {
            throw damaged(error)
        } catch (error: EOFException) {
            throw damaged(error)
        }
    }

    private fun damaged(error: IOException) =
        BundleException("damaged zip: ${error.message ?: "it ends early"}", "copy the bundle again or export it again", error)

    private fun check(entry: ZipEntry, names: MutableSet<String>) {
        val segments = entry.name.split('/')
        val unsafe = '\\' in entry.name || '\u0000' in entry.name || segments.any { it.isEmpty() || it == "." || it == ".." }
        if (unsafe) throw BundleException("the zip has an unsafe path", NOT_OURS)
        if (!names.add(entry.name) || names.size > MOST_FILES) throw BundleException("too many or repeated entries", NOT_OURS)
        // Stored entries cannot unpack to more than the archive itself.
        if (entry.method != ZipEntry.STORED) {
            throw BundleException("${entry.name} is compressed", "pack the bundle without compression")
        }
    }

    private companion object {
        const val MOST_FILES = 10_000
        const val NOT_OURS = "it is not one of ours"
    }
}

/** Copies to the end; tells [written] about every block. */
internal fun copyBlocks(source: InputStream, target: OutputStream, written: (Int) -> Unit) {
    val block = ByteArray(1 shl 18)
    while (true) {
        val count = source.read(block)
        if (count < 0) return
        target.write(block, 0, count)
        written(count)
    }
}
