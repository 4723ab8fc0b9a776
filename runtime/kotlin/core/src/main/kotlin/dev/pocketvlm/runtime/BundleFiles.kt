package dev.pocketvlm.runtime

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.file.Files
import java.nio.file.LinkOption.NOFOLLOW_LINKS
import java.nio.file.attribute.BasicFileAttributes
import java.security.MessageDigest
import java.util.concurrent.Callable
import java.util.concurrent.ExecutionException
import java.util.concurrent.Executors

/** Compares a bundle's directory with its manifest. */
internal class BundleFiles(private val directory: File, private val checkCancelled: () -> Unit = {}) {
    /**
     * Reads the manifest and holds the files against it.
     *
     * @param verify hash every file, too.
     */
    fun check(verify: Boolean): Manifest {
        val manifest = readManifest()
        val found = HashMap<String, Long>()
        walk(directory, "", found)
        found -= listOf(Manifest.NAME, Manifest.HASH_NAME)
        for (item in manifest.files) {
            val bytes = found.remove(item.path) ?: throw BundleException("${item.path}: missing from the bundle", COPY_AGAIN)
            if (bytes != item.bytes) {
                throw BundleException("${item.path}: $bytes bytes, the manifest says ${item.bytes}", COPY_AGAIN)
            }
        }
        found.keys.minOrNull()?.let {
            throw BundleException("$it: not part of the bundle", "remove it, or export the bundle again")
        }
        if (verify) checkHashes(manifest.files)
        return manifest
    }

    private fun readManifest(): Manifest {
        val content = readSmall(Manifest.NAME)
            ?: throw BundleException("no ${Manifest.NAME}", "give the directory that `pocketvlm export` wrote")
        val hashed = readSmall(Manifest.HASH_NAME)
            ?: throw BundleException("${Manifest.HASH_NAME}: missing from the bundle", COPY_AGAIN)
        if (content.size <= Manifest.MAX_BYTES && !hashed.contentEquals(manifestHash(content).toByteArray())) {
            throw BundleException(
                "${Manifest.NAME}: sha256 differs from ${Manifest.HASH_NAME}: the file is damaged",
                COPY_AGAIN,
            )
        }
        val text = try {
            Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(content)).toString()
        } catch (_: CharacterCodingException) {
            throw BundleException("${Manifest.NAME}: not UTF-8 text", COPY_AGAIN)
        }
        return ManifestReader.parse(text)
    }

    /** The content of a regular file, one byte more than a manifest may have at the most; null without the file. */
    private fun readSmall(name: String): ByteArray? {
        val path = File(directory, name).toPath()
        return try {
            if (!Files.exists(path, NOFOLLOW_LINKS)) return null
            // Neither followed nor waited for: a link may lead out of the bundle, and a pipe never ends.
            val kind = Files.readAttributes(path, BasicFileAttributes::class.java, NOFOLLOW_LINKS)
            if (kind.isSymbolicLink) throw BundleException("$name: a link, not a file", COPY_AGAIN)
            if (!kind.isRegularFile) throw BundleException("$name: neither a file nor a folder", COPY_AGAIN)
            Files.newInputStream(path, NOFOLLOW_LINKS).use { readAtMost(it, Manifest.MAX_BYTES + 1) }
        } catch (error: IOException) {
            throw BundleException("$name: cannot be read: ${error.reason()}", COPY_AGAIN, error)
        }
    }

    /** Relative path and size of every file; links and special files are refused. */
    private fun walk(folder: File, prefix: String, found: MutableMap<String, Long>) {
        checkCancelled()
        val entries = try {
            Files.newDirectoryStream(folder.toPath()).use { stream -> stream.sortedBy { it.fileName.toString() } }
        } catch (error: IOException) {
            throw BundleException("${prefix.ifEmpty { "." }}: cannot be read: ${error.reason()}", COPY_AGAIN, error)
        }
        for (entry in entries) {
            val name = prefix + entry.fileName
            val kind = try {
                Files.readAttributes(entry, BasicFileAttributes::class.java, NOFOLLOW_LINKS)
            } catch (error: IOException) {
                throw BundleException("$name: cannot be read: ${error.reason()}", COPY_AGAIN, error)
            }
            when {
                kind.isSymbolicLink -> throw BundleException("$name: a link; a bundle holds only files and folders", COPY_AGAIN)
                kind.isDirectory -> walk(entry.toFile(), "$name/", found)
                kind.isRegularFile -> found[name] = kind.size()
                else -> throw BundleException("$name: neither a file nor a folder", COPY_AGAIN)
            }
            if (found.size > MOST_FILES) throw BundleException("more than $MOST_FILES files", "it is not one of ours")
        }
    }

    private fun checkHashes(files: List<FileSpec>) {
        val pool = Executors.newFixedThreadPool(HASH_THREADS.coerceAtMost(files.size.coerceAtLeast(1))) { work ->
            Thread(work, "bundle hashes").apply { isDaemon = true }
        }
        try {
            pool.invokeAll(files.map { Callable { checkHash(it) } }).forEach { it.get() }
        } catch (error: ExecutionException) {
            throw error.cause ?: error
        } finally {
            pool.shutdownNow()
        }
    }

    private fun checkHash(item: FileSpec) {
        val found = try {
            File(directory, item.path).inputStream().use { sha256(it, checkCancelled) }
        } catch (error: IOException) {
            throw BundleException("${item.path}: cannot be read: ${error.reason()}", COPY_AGAIN, error)
        }
        if (found != item.sha256) {
            throw BundleException("${item.path}: sha256 differs from the manifest: the file is damaged", COPY_AGAIN)
        }
    }

    companion object {
        const val COPY_AGAIN: String = "copy the bundle again or export it again"
        const val MOST_FILES: Int = 10_000
        private const val HASH_THREADS = 4
    }
}

/** Text of `manifest.json.sha256` for these bytes of `manifest.json`, in the form that `sha256sum --check` reads. */
internal fun manifestHash(content: ByteArray): String = "${sha256(content)}  ${Manifest.NAME}\n"

/** SHA-256 in lower-case hexadecimal. */
internal fun sha256(content: ByteArray): String = hexadecimal(MessageDigest.getInstance("SHA-256").digest(content))

internal fun sha256(stream: InputStream, checkCancelled: () -> Unit = {}): String {
    val digest = MessageDigest.getInstance("SHA-256")
    val block = ByteArray(BLOCK)
    while (true) {
        checkCancelled()
        val count = stream.read(block)
        if (count < 0) return hexadecimal(digest.digest())
        digest.update(block, 0, count)
    }
}

internal fun hexadecimal(bytes: ByteArray): String {
    val digits = CharArray(bytes.size * 2)
    for ((index, byte) in bytes.withIndex()) {
        digits[2 * index] = "0123456789abcdef"[byte.toInt() shr 4 and 15]
        digits[2 * index + 1] = "0123456789abcdef"[byte.toInt() and 15]
    }
    return String(digits)
}

internal fun readAtMost(stream: InputStream, most: Int): ByteArray {
    val output = java.io.ByteArrayOutputStream()
    val block = ByteArray(BLOCK)
    while (output.size() < most) {
        val count = stream.read(block, 0, minOf(block.size, most - output.size()))
        if (count < 0) break
        output.write(block, 0, count)
    }
    return output.toByteArray()
}

/** What the system said, without the path that is named beside it. */
internal fun IOException.reason(): String = when (this) {
    is java.nio.file.AccessDeniedException -> "permission denied"
    is java.nio.file.NoSuchFileException, is java.io.FileNotFoundException -> "no such file"
    else -> (message ?: javaClass.simpleName).lineSequence().first()
}

internal const val BLOCK: Int = 1 shl 20
