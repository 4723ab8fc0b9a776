package dev.pocketvlm.demo.bundles

import dev.pocketvlm.demo.Problem
import dev.pocketvlm.runtime.Bundle
import dev.pocketvlm.runtime.PocketVlmException
import dev.pocketvlm.runtime.engine.Engines
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/** One variant of a bundle; [obstacle] says why it does not run on this device, null where it does. */
data class VariantNote(val name: String, val target: String, val precision: String, val obstacle: Problem?)

/** What there is to say about an imported bundle. */
sealed interface BundleEntry {
    val name: String
    val bytes: Long

    data class Usable(
        override val name: String,
        override val bytes: Long,
        val model: String,
        val licence: String,
        val parameters: Long,
        val variants: List<VariantNote>,
    ) : BundleEntry

    /** Such as one that an older version of the app imported, or a newer one. */
    data class Unusable(override val name: String, override val bytes: Long, val problem: Problem) : BundleEntry
}

/** Looks into the imported bundles. */
class BundleCatalogue(private val store: BundleStore, private val engines: Engines) {
    suspend fun entries(): List<BundleEntry> = withContext(Dispatchers.IO) { store.names().map(::entry) }

    private fun entry(name: String): BundleEntry {
        val bytes = store.bytes(name)
        val bundle = try {
            // Hashes were compared when it was imported.
            Bundle.open(store.directory(name), verify = false)
        } catch (error: PocketVlmException) {
            return BundleEntry.Unusable(name, bytes, toldOf(error, store.directory(name).path, name))
        }
        return bundle.use {
            val model = it.manifest.model
            BundleEntry.Usable(name, bytes, model.name, model.licence, model.parameters, variantNotes(it, engines))
        }
    }
}

/** Which variants of [bundle] run here, in the bundle's order, and why the others do not. */
fun variantNotes(bundle: Bundle, engines: Engines): List<VariantNote> = bundle.manifest.variants.map { variant ->
    val obstacle = try {
        bundle.variant(engines, variant.name)
        null
    } catch (error: PocketVlmException) {
        toldOf(error, bundle.name, "")
    }
    VariantNote(variant.name, variant.target, variant.precision, obstacle)
}

/** The error in words for a reader to whom [path] means nothing: [shown] takes its place. */
fun toldOf(error: PocketVlmException, path: String, shown: String): Problem {
    val problem = if (shown.isEmpty()) error.problem.removePrefix("$path: ") else error.problem.replace(path, shown)
    return Problem.Told(problem, error.hint)
}
