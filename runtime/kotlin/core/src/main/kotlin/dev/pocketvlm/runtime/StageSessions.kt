package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.engine.EngineSession
import dev.pocketvlm.runtime.engine.Engines
import java.io.File
import java.io.IOException
import java.nio.file.Files
import java.nio.file.attribute.BasicFileAttributes

/**
 * Opens stages; those of the decoder that are the same session, once.
 *
 * Vision stages are opened again after a release. Their files must be those that were verified when the bundle was opened: an
 * import may have put another bundle in its place.
 */
internal class StageSessions(
    private val bundle: Bundle,
    private val variant: VariantSpec,
    private val engines: Engines,
    private val threads: Int?,
) : AutoCloseable {
    private val shared = HashMap<SessionKey, EngineSession>()
    private val verified = variant.stages.keys.associateWith(::filesOf)

    /**
     * Opens one stage.
     *
     * @throws BundleException its files are no longer those of the opened bundle, or cannot be loaded.
     * @throws EnvironmentException the engine fails.
     */
    fun open(stage: String, threads: Int?): EngineSession {
        if (filesOf(stage) != verified[stage]) {
            throw BundleException(
                "${bundle.name}: replaced or changed since it was opened",
                "close the session and open it again",
            )
        }
        val (engine, options) = variant.engineOf(stage)
        return engines.load(engine).open(bundle.file(variant.stages.getValue(stage).file), options, threads)
    }

    /** A stage that stays open; one with the same file, engine and options is the same session. */
    fun shared(stage: String): EngineSession {
        val key = SessionKey(variant.stages.getValue(stage).file, variant.engineOf(stage))
        // A table look-up gains nothing from threads.
        return shared.getOrPut(key) { open(stage, if (stage == "embed_tokens") 1 else threads) }
    }

    override fun close() {
        shared.values.forEach(EngineSession::close)
        shared.clear()
    }

    /** What tells each file of a stage from any other that may stand in its place. */
    private fun filesOf(stage: String): List<List<Any?>?> {
        val spec = variant.stages.getValue(stage)
        return (listOf(spec.file) + spec.externalData).map { identity(bundle.file(it)) }
    }

    private fun identity(file: File): List<Any?>? = try {
        val found = Files.readAttributes(file.toPath(), BasicFileAttributes::class.java)
        listOf(found.fileKey(), found.size(), found.lastModifiedTime())
    } catch (_: IOException) {
        null
    }

    private data class SessionKey(val file: String, val choice: EngineChoice)
}
