package dev.pocketvlm.runtime

import java.io.EOFException
import java.io.File
import java.io.IOException
import java.io.InputStream
import java.nio.file.Files
import java.util.zip.ZipEntry
import java.util.zip.ZipException
import java.util.zip.ZipInputStream

/**
 * Unpacks a bundle that comes as one uncompressed zip, while it is read: the room is needed once.
 *
 * None of the files lands outside the directory. Whether they are those of the manifest is for [Bundle.open] to find out.
 *
 * @param written is told about every block of so many bytes; it may throw.
 */
public class BundleZip(private val written: (Int) -> Unit = {}) {
    private val files = HashSet<String>()
    private val folders = HashSet<String>()

    /**
     * Reads [stream] to its end, closes it, and writes below [directory].
     *
     * @throws BundleException no zip, a damaged one, or one with compressed, encrypted or repeated entries or unsafe paths.
     * @throws IOException the stream cannot be read, or a file not be written.
     */
    public fun unpack(stream: InputStream, directory: File) {
        try {
            ZipInputStream(stream).use { zip ->
                generateSequence(zip::getNextEntry).filter { !it.isDirectory }.forEach { copy(zip, it, directory) }
            }
        } catch (error: ZipException) {
            throw damaged(error)
        } catch (error: EOFException) {
            throw damaged(error)
        }
        if (files.isEmpty()) throw BundleException("no zip, or an empty one", "pick the zip of a bundle")
    }

    private fun copy(zip: ZipInputStream, entry: ZipEntry, directory: File) {
        check(entry)
        val target = File(directory, entry.name)
        target.parentFile?.mkdirs()
        val block = ByteArray(BLOCK)
        target.outputStream().use { copy ->
            while (true) {
                val count = zip.read(block)
                if (count < 0) break
                copy.write(block, 0, count)
                written(count)
            }
        }
    }

    private fun check(entry: ZipEntry) {
        val name = entry.name
        ManifestRules.checkRelativePath(name, "the zip")
        if (!files.add(name) || files.size > BundleFiles.MOST_FILES) throw BundleException("too many or repeated entries", NOT_OURS)
        val above = generateSequence(name.substringBeforeLast('/', "")) { it.substringBeforeLast('/', "") }.takeWhile { it.isNotEmpty() }
        folders += above
        (above + name).firstOrNull { it in files && it in folders }?.let {
            throw BundleException("$it is a file and a folder", NOT_OURS)
        }
        // Stored entries cannot unpack to more than the archive itself.
        if (entry.method != ZipEntry.STORED) {
            throw BundleException("$name is compressed or encrypted", "pack the bundle without compression")
        }
    }

    private fun damaged(error: IOException) = BundleException("damaged zip: ${error.reason()}", BundleFiles.COPY_AGAIN, error)

    internal companion object {
        private const val NOT_OURS = "it is not one of ours"

        /** Unpacks a file to a fresh directory below [parent], which the caller removes. */
        fun unpackFile(archive: File, parent: File, checkCancelled: () -> Unit): File {
            var directory: File? = null
            try {
                directory = Files.createTempDirectory(parent.toPath(), "pocketvlm-").toFile()
                BundleZip { checkCancelled() }.unpack(archive.inputStream().buffered(), directory)
                return directory
            } catch (error: Throwable) {
                directory?.deleteRecursively()
                if (error !is IOException) throw error
                throw EnvironmentException(
                    "${archive.path}: cannot be unpacked to ${directory ?: parent}: ${error.reason()}",
                    "free some space, or unpack it yourself",
                    error,
                )
            }
        }
    }
}
