package dev.pocketvlm.demo.bundles

import java.io.File
import java.io.IOException

/**
 * The folder of imported bundles, one directory each. A directory without an ending is whole and verified; `NAME.part` is one
 * that is being made, and `NAME.old` one that is being replaced. Renaming is the only step by which a bundle appears, so that
 * the process may be killed at any time: [recover] puts things right at the next start.
 */
class BundleStore(private val root: File) {
    /** Removes half imports, and takes back a bundle whose replacement did not arrive. */
    fun recover() {
        root.mkdirs()
        for (old in entries().filter { it.name.endsWith(OLD) }) {
            val current = File(root, old.name.removeSuffix(OLD))
            if (current.exists() || !old.renameTo(current)) old.deleteRecursively()
        }
        entries().filter { it.name.endsWith(PART) }.forEach(File::deleteRecursively)
    }

    /** Names of the bundles. */
    fun names(): List<String> =
        entries().filter { it.isDirectory && !it.name.endsWith(PART) && !it.name.endsWith(OLD) }.map { it.name }.sorted()

    /** Where the bundle [name] is, or would be. */
    fun directory(name: String): File = File(root, name)

    /** An empty directory, on the same volume, to make the bundle [name] in. */
    fun freshPart(name: String): File {
        val part = File(root, name + PART)
        part.deleteRecursively()
        if (!part.mkdirs()) throw IOException("${part.path}: cannot be made")
        return part
    }

    /** Makes [part], whole and verified, the bundle [name]; takes the place of one that is there. */
    fun install(part: File, name: String) {
        val directory = directory(name)
        val old = File(root, name + OLD)
        old.deleteRecursively()
        if (directory.exists()) rename(directory, old)
        rename(part, directory)
        old.deleteRecursively()
    }

    /** Removes the bundle [name]. */
    fun delete(name: String) {
        // First out of sight: a half deleted bundle would look like a damaged one.
        val part = File(root, name + PART)
        part.deleteRecursively()
        directory(name).renameTo(part)
        part.deleteRecursively()
    }

    /** Room that a bundle takes. */
    fun bytes(name: String): Long = directory(name).walk().filter(File::isFile).sumOf(File::length)

    private fun entries(): List<File> = root.listFiles().orEmpty().toList()

    private fun rename(from: File, to: File) {
        if (!from.renameTo(to)) throw IOException("${from.path}: cannot be renamed to ${to.name}")
    }

    companion object {
        private const val PART = ".part"
        private const val OLD = ".old"
        private const val LONGEST = 80
        private val UNSAFE = Regex("[^A-Za-z0-9._-]+")

        /** A directory name made of what somebody else called it: "My model (1).zip" gives "My-model-1". */
        fun safeName(shown: String): String {
            val name = shown.removeSuffix(".zip").replace(UNSAFE, "-").trim('-', '.', '_').take(LONGEST)
            return if (name.endsWith(PART) || name.endsWith(OLD) || name.isEmpty()) "bundle-$name" + "-1" else name
        }
    }
}
