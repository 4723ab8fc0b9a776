package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.engine.Engines
import java.io.File
import java.util.zip.ZipFile

/**
 * A bundle on disk whose files are those that its manifest lists. Use [Bundle.open].
 *
 * @property directory where the files are.
 * @property manifest what `manifest.json` says.
 * @property name what messages call it: the path that it was opened by.
 */
public class Bundle private constructor(
    public val directory: File,
    public val manifest: Manifest,
    public val name: String,
    private val temporary: Boolean,
) : AutoCloseable {
    private val files = manifest.files.associateBy { it.path }

    /**
     * The variant for a target or of that name; without one, the first that this machine is made for.
     *
     * @param target "qnn:SM8750+ort-cpu" takes the vision stages of the former and the language model of the latter. A
     *   variant for a device that is only emulated here is taken when it is asked for.
     * @throws UsageException the bundle has no such variant.
     * @throws EnvironmentException none of its engines runs here, or the variant was compiled for another device.
     * @throws BundleException a stage is missing or not known, or the vision stages do not fit the manifest.
     */
    public fun variant(engines: Engines, target: String? = null): VariantSpec = named {
        val chosen = VariantChoice(manifest, engines).choose(target)
        VisionContract.checkSizes(manifest, chosen)
        chosen
    }

    /**
     * Full path of a file that the manifest lists.
     *
     * @throws BundleException it lists no such file.
     */
    public fun file(path: String): File {
        if (path !in files) throw BundleException("$name: manifest.json does not list '$path'", BundleFiles.COPY_AGAIN)
        return File(directory, path)
    }

    /** Hash of a file that the manifest lists, as the manifest says. */
    public fun sha256(path: String): String = files.getValue(path).sha256

    /** Within [work], what is wrong with the bundle is told with its name, and files by their place in it. */
    internal inline fun <T> named(work: () -> T): T = withBundleName(name, work)

    /** Removes what was unpacked from a zip; a directory stays as it is. */
    override fun close() {
        if (temporary) directory.deleteRecursively()
    }

    public companion object {
        /**
         * Opens a bundle directory, or one uncompressed zip of it, and proves that it is whole before anything of it is loaded.
         *
         * @param verify compare every file's sha256 with the manifest. The manifest's own hash, presence, sizes and surplus
         *   files are always checked.
         * @param unpackTo where a zip is unpacked: weights are mapped from real files.
         * @param checkCancelled is called between files; it may throw.
         * @throws BundleException not a bundle, damaged, incomplete, with surplus files, links or unsafe paths, or of a newer
         *   schema.
         * @throws EnvironmentException no room to unpack a zip.
         */
        public fun open(
            path: File,
            verify: Boolean = true,
            unpackTo: File = File(System.getProperty("java.io.tmpdir") ?: "."),
            checkCancelled: () -> Unit = {},
        ): Bundle {
            val name = path.path
            if (path.isDirectory) {
                val manifest = withBundleName(name) { BundleFiles(path, checkCancelled).check(verify) }
                return Bundle(path, manifest, name, temporary = false)
            }
            if (!path.exists()) throw BundleException("$name: no such bundle", "give the directory that `pocketvlm export` wrote")
            if (!path.isFile || !isZip(path)) {
                throw BundleException(
                    "$name: neither a bundle directory nor a whole zip",
                    "give the directory that `pocketvlm export` wrote",
                )
            }
            val directory = withBundleName(name) { BundleZip.unpackFile(path, unpackTo, checkCancelled) }
            try {
                val manifest = withBundleName(name) { BundleFiles(directory, checkCancelled).check(verify) }
                return Bundle(directory, manifest, name, temporary = true)
            } catch (error: Throwable) {
                directory.deleteRecursively()
                throw error
            }
        }

        private fun isZip(path: File): Boolean = try {
            ZipFile(path).use { true }
        } catch (_: java.io.IOException) {
            false
        }
    }
}

internal inline fun <T> withBundleName(name: String, work: () -> T): T = try {
    work()
} catch (error: BundleException) {
    if (error.problem.startsWith("$name: ")) throw error
    throw BundleException("$name: ${error.problem}", error.hint, error)
}
