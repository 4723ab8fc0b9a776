package dev.pocketvlm.demo.bundles

import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.ProblemException
import dev.pocketvlm.demo.R
import dev.pocketvlm.runtime.Bundle
import dev.pocketvlm.runtime.BundleException
import java.io.File
import java.io.IOException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.withContext

/** Where an import is. */
sealed interface ImportStep {
    /** [total] is null where the source does not tell its size. */
    data class Copying(val bytes: Long, val total: Long?) : ImportStep

    /** Every file's sha256 is compared with the manifest. */
    data object Verifying : ImportStep

    data object Installing : ImportStep
}

/** Brings a bundle into the store: copied beside, verified, then renamed into place. */
class BundleImporter(private val store: BundleStore, private val freeBytes: (File) -> Long) {
    /**
     * Imports [source] and returns the bundle's name.
     *
     * @param progress is called on a background thread.
     * @param beforeInstall lets go of the bundle of that name, which may be in use.
     */
    suspend fun import(
        source: BundleSource,
        progress: (ImportStep) -> Unit,
        beforeInstall: suspend (name: String) -> Unit = {},
    ): String = withContext(Dispatchers.IO) {
        val name = BundleStore.safeName(source.name)
        val total = source.bytes()
        val part = store.freshPart(name)
        try {
            checkRoom(part, source.name, total)
            copy(source, part, total) { step ->
                ensureActive()
                progress(step)
            }
            progress(ImportStep.Verifying)
            verify(part, source.name) { ensureActive() }
            progress(ImportStep.Installing)
            beforeInstall(name)
            store.install(part, name)
        } finally {
            part.deleteRecursively()
        }
        source.done()
        name
    }

    private fun checkRoom(part: File, shown: String, total: Long?) {
        val needed = (total ?: 0) + RESERVE
        val free = freeBytes(part)
        if (needed <= free) return
        val megabytes = listOf(shown, needed / MEGA, free / MEGA)
        throw ProblemException(Problem.Known(R.string.problem_space, R.string.problem_space_hint, megabytes))
    }

    private fun copy(source: BundleSource, part: File, total: Long?, progress: (ImportStep) -> Unit) {
        var bytes = 0L
        progress(ImportStep.Copying(0, total))
        try {
            source.copyTo(part) { count ->
                bytes += count
                progress(ImportStep.Copying(bytes, total))
            }
        } catch (error: ProblemException) {
            throw error
        } catch (error: IOException) {
            // The room was there when the copy began, or its size was not known.
            val full = freeBytes(part) < RESERVE
            val reason = if (full) R.string.problem_full else R.string.problem_copy
            val hint = if (full) R.string.problem_space_hint else R.string.problem_document_hint
            throw ProblemException(Problem.Known(reason, hint, listOf(source.name, error.message.orEmpty())), error)
        }
    }

    private fun verify(part: File, shown: String, checkCancelled: () -> Unit) {
        try {
            Bundle.open(part, verify = true, checkCancelled = checkCancelled).close()
        } catch (error: BundleException) {
            // The user knows the file that was picked, not the place where it was unpacked.
            throw BundleException(error.problem.replace(part.path, shown), error.hint, error)
        }
    }

    private companion object {
        const val MEGA = 1_000_000L

        /** Left free for everything else on the phone. */
        const val RESERVE = 50 * MEGA
    }
}
