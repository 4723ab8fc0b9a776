package dev.pocketvlm.runtime

import java.io.File
import java.io.IOException
import java.util.zip.ZipEntry
import java.util.zip.ZipException
import java.util.zip.ZipFile

/** Unpacks a bundle that came as one uncompressed zip. */
internal class BundleZip(private val archive: File, private val checkCancelled: () -> Unit = {}) {
    /** Unpacks to a fresh directory below [parent]; the caller removes it. */
    fun unpack(parent: File): File {
        val directory = freshDirectory(parent)
        try {
            withBundleName(archive.path) { copyTo(directory) }
            return directory
        } catch (error: Throwable) {
            directory.deleteRecursively()
            throw error
        }
    }

    private fun freshDirectory(parent: File): File = try {
        java.nio.file.Files.createTempDirectory(parent.toPath(), "pocketvlm-").toFile()
    } catch (error: IOException) {
        throw cannotUnpack(parent, error)
    }

    private fun copyTo(directory: File) {
        try {
            ZipFile(archive).use { zip ->
                val entries = zip.entries().asSequence().filter { !it.isDirectory }.toList()
                check(entries)
                for (entry in entries) copy(zip, entry, directory)
            }
        } catch (error: ZipException) {
            throw BundleException("damaged zip: ${error.reason()}", BundleFiles.COPY_AGAIN, error)
        } catch (error: java.io.EOFException) {
            throw BundleException("damaged zip: ${error.reason()}", BundleFiles.COPY_AGAIN, error)
        } catch (error: IOException) {
            throw cannotUnpack(directory, error)
        }
    }

    private fun copy(zip: ZipFile, entry: ZipEntry, directory: File) {
        val target = File(directory, entry.name)
        target.parentFile?.mkdirs()
        val block = ByteArray(BLOCK)
        zip.getInputStream(entry).use { source ->
            target.outputStream().use { copy ->
                while (true) {
                    checkCancelled()
                    val count = source.read(block)
                    if (count < 0) break
                    copy.write(block, 0, count)
                }
            }
        }
    }

    private fun check(entries: List<ZipEntry>) {
        val names = entries.map { it.name }.toSet()
        if (entries.size > BundleFiles.MOST_FILES || names.size != entries.size) {
            throw BundleException("too many or repeated entries", NOT_OURS)
        }
        for (entry in entries) {
            ManifestRules.checkRelativePath(entry.name, "the zip")
            for ((index, character) in entry.name.withIndex()) {
                val folder = entry.name.take(index)
                if (character == '/' && folder in names) throw BundleException("$folder is a file and a folder", NOT_OURS)
            }
            // Stored entries cannot unpack to more than the archive itself.
            if (entry.method != ZipEntry.STORED || entry.size != entry.compressedSize || entry.size < 0) {
                throw BundleException("${entry.name} is compressed or encrypted", "pack the bundle without compression")
            }
        }
        if (entries.sumOf { it.size } > archive.length()) throw BundleException("entries overlap", NOT_OURS)
    }

    private fun cannotUnpack(directory: File, error: IOException) = EnvironmentException(
        "${archive.path}: cannot be unpacked to $directory: ${error.reason()}",
        "free some space, or unpack it yourself",
        error,
    )

    private companion object {
        const val NOT_OURS = "it is not one of ours"
    }
}
