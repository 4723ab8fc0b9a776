package dev.pocketvlm.demo.bundles

import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.reporting
import dev.pocketvlm.demo.session.SessionHolder
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.launch

/** What the latest import does or did. */
sealed interface ImportState {
    data object Idle : ImportState

    data class Running(val name: String, val step: ImportStep) : ImportState

    data class Done(val name: String) : ImportState

    data class Failed(val problem: Problem) : ImportState
}

/** One import at a time. It goes on while the user looks at another screen. */
class Imports(
    private val scope: CoroutineScope,
    private val importer: BundleImporter,
    private val sessions: SessionHolder,
) {
    private val states = MutableStateFlow<ImportState>(ImportState.Idle)
    private var job: Job? = null

    val state: StateFlow<ImportState> = states.asStateFlow()

    /** Begins to import [source], unless an import is running. A first bundle is opened when it has arrived. */
    fun start(source: BundleSource) {
        if (job?.isActive == true) return
        states.value = ImportState.Running(source.name, ImportStep.Copying(0, null))
        job = scope.launch {
            reporting({ states.value = ImportState.Failed(it) }) { import(source) }
        }
        job?.invokeOnCompletion { error -> if (error != null) states.value = ImportState.Idle }
    }

    /** Gives up; what was copied is removed. */
    fun cancel() {
        job?.cancel()
    }

    /** The outcome has been read. */
    fun acknowledge() {
        if (states.value !is ImportState.Running) states.value = ImportState.Idle
    }

    private suspend fun import(source: BundleSource) {
        var left = false
        try {
            val name = importer.import(
                source,
                progress = { states.value = ImportState.Running(source.name, it) },
                beforeInstall = { left = sessions.leave(it) },
            )
            if (sessions.selected == null) sessions.select(name)
            states.value = ImportState.Done(name)
        } finally {
            // With the new files or, where they did not arrive, the old ones.
            if (left) sessions.restore()
        }
    }
}
