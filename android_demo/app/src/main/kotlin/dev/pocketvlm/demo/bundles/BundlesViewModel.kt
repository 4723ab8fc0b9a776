package dev.pocketvlm.demo.bundles

import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.ViewModel
import dev.pocketvlm.demo.session.SessionHolder
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/** The imported bundles. */
sealed interface Shelf {
    data object Loading : Shelf

    /** @property selected name of the one in use. */
    data class Loaded(val entries: List<BundleEntry>, val selected: String?, val pushed: List<BundleSource>) : Shelf
}

/** Everything that the bundles screen shows. */
data class BundlesState(
    val shelf: Shelf = Shelf.Loading,
    val import: ImportState = ImportState.Idle,
    val problem: Problem? = null,
)

/** Lists, imports, chooses and deletes bundles. */
class BundlesViewModel(
    private val store: BundleStore,
    private val catalogue: BundleCatalogue,
    private val pushed: PushedBundles,
    private val imports: Imports,
    private val sessions: SessionHolder,
) : ViewModel() {
    private val states = MutableStateFlow(BundlesState())

    val state: StateFlow<BundlesState> = states.asStateFlow()

    init {
        scope.launch {
            imports.state.collect { import ->
                states.update { it.copy(import = import) }
                if (import !is ImportState.Running) refresh()
            }
        }
    }

    /** Looks again, such as after an `adb push`. */
    fun refresh() {
        scope.launch { load() }
    }

    fun import(source: BundleSource) = imports.start(source)

    fun cancelImport() = imports.cancel()

    fun acknowledgeImport() = imports.acknowledge()

    fun use(name: String) {
        sessions.select(name)
        refresh()
    }

    fun delete(name: String) {
        scope.launch {
            sessions.leave(name)
            withContext(Dispatchers.IO) { store.delete(name) }
            load()
        }
    }

    fun report(problem: Problem) = states.update { it.copy(problem = problem) }

    fun dismissProblem() = states.update { it.copy(problem = null) }

    private suspend fun load() {
        val entries = catalogue.entries()
        val found = withContext(Dispatchers.IO) { pushed.list() }
        states.update { it.copy(shelf = Shelf.Loaded(entries, sessions.selected, found)) }
    }
}
