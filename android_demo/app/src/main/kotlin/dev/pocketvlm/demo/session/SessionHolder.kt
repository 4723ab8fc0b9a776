package dev.pocketvlm.demo.session

import android.content.ComponentCallbacks2
import dev.pocketvlm.demo.Platform
import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.bundles.BundleStore
import dev.pocketvlm.demo.bundles.VariantNote
import dev.pocketvlm.demo.bundles.toldOf
import dev.pocketvlm.demo.bundles.variantNotes
import dev.pocketvlm.runtime.Bundle
import dev.pocketvlm.runtime.PocketVlmException
import dev.pocketvlm.runtime.ReleasePolicy
import dev.pocketvlm.runtime.SessionOptions
import dev.pocketvlm.runtime.VlmSession
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.coroutines.withContext

/** The model in memory. */
sealed interface SessionState {
    data object None : SessionState

    data class Opening(val name: String) : SessionState

    data class Failed(val name: String, val problem: Problem) : SessionState

    /** @property passedOver variants that the bundle would rather have run, and why they do not run here. */
    data class Ready(val name: String, val session: VlmSession, val passedOver: List<VariantNote>) : SessionState
}

/** Keeps one session, that of the selected bundle, for all screens. */
class SessionHolder(
    private val scope: CoroutineScope,
    private val store: BundleStore,
    private val platform: Platform,
    private val preferences: Preferences,
) {
    private val states = MutableStateFlow<SessionState>(SessionState.None)

    // Held while a session is opened, closed or trimmed, so that these come one after the other.
    private val turn = Mutex()
    private var current: VlmSession? = null

    val state: StateFlow<SessionState> = states.asStateFlow()

    /** Name of the bundle in use, null for none. */
    val selected: String? get() = preferences.selectedBundle?.takeIf { it in store.names() }

    /** Opens the bundle that was in use last. */
    fun restore() {
        val name = selected ?: return
        states.value = SessionState.Opening(name)
        scope.launch { turn.withLock { reopen() } }
    }

    /** Uses the bundle [name] from now on. */
    fun select(name: String) {
        preferences.selectedBundle = name
        restore()
    }

    /** Closes the session and opens another one of the same bundle, in which nothing is cached; null where that fails. */
    suspend fun fresh(): VlmSession? = turn.withLock {
        reopen()
        (states.value as? SessionState.Ready)?.session
    }

    /** Lets go of the bundle [name], which is about to be replaced or deleted; returns whether it was in use. */
    suspend fun leave(name: String): Boolean {
        if (selected != name) return false
        turn.withLock {
            close()
            states.value = SessionState.None
        }
        return true
    }

    /**
     * Makes room when the system asks. The vision stages go: the next picture loads them again. Not for TRIM_MEMORY_UI_HIDDEN,
     * which only says that another screen is in front, such as the one where the user picks the picture.
     */
    @Suppress("DEPRECATION") // Systems before Android 14 still tell of these levels.
    fun trim(level: Int) {
        val running = ComponentCallbacks2.TRIM_MEMORY_RUNNING_LOW..ComponentCallbacks2.TRIM_MEMORY_RUNNING_CRITICAL
        if (level !in running && level < ComponentCallbacks2.TRIM_MEMORY_BACKGROUND) return
        scope.launch {
            turn.withLock {
                // It waits for the picture in work.
                withContext(Dispatchers.IO) { current?.releaseVision() }
            }
        }
    }

    private suspend fun reopen() {
        close()
        // What was selected when it was this call's turn: an earlier choice is not opened any more.
        val name = selected
        if (name == null) {
            states.value = SessionState.None
            return
        }
        states.value = SessionState.Opening(name)
        val directory = store.directory(name)
        states.value = try {
            // A session that arrives after a cancellation would stay open for ever.
            withContext(NonCancellable) { open(name, directory) }
        } catch (error: PocketVlmException) {
            SessionState.Failed(name, toldOf(error, directory.path, name))
        }
    }

    private suspend fun open(name: String, directory: File): SessionState {
        val session = VlmSession.open(directory, options())
        current = session
        val notes = withContext(Dispatchers.IO) {
            Bundle.open(directory, verify = false).use { variantNotes(it, platform.engines) }
        }
        return SessionState.Ready(name, session, notes.takeWhile { it.name != session.variant.name })
    }

    private fun options() = SessionOptions(
        imageDecoder = platform.codec,
        release = if (platform.device.lowRam) ReleasePolicy.AFTER_ENCODE else ReleasePolicy.ON_PRESSURE,
        // Every file was hashed when it was imported, and no other app can change it.
        verify = false,
        imageCacheMb = if (platform.device.lowRam) LITTLE_CACHE_MB else CACHE_MB,
        engines = platform.engines,
        memory = platform.memory,
    )

    private suspend fun close() {
        val session = current ?: return
        current = null
        withContext(Dispatchers.IO + NonCancellable) { session.close() }
    }

    private companion object {
        const val CACHE_MB = 64
        const val LITTLE_CACHE_MB = 16
    }
}
