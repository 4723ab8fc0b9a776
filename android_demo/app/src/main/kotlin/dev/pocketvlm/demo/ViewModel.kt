package dev.pocketvlm.demo

import android.app.Activity
import android.os.Bundle
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancel
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.launch

/** What a screen knows and does. It outlives the screen's views when the device is turned. */
abstract class ViewModel {
    /** Lives as long as the view model, on the main thread. */
    protected val scope: CoroutineScope = CoroutineScope(SupervisorJob() + Dispatchers.Main.immediate)

    /** The screen is left for good. */
    open fun close() {
        scope.cancel()
    }
}

/** A screen with a view model: kept while the configuration changes, closed with the screen. */
abstract class ModelActivity<M : ViewModel> : Activity() {
    /** Of this screen. */
    lateinit var model: M
        private set

    private val views = CoroutineScope(SupervisorJob() + Dispatchers.Main.immediate)

    /** Makes the view model of a fresh screen. */
    protected abstract fun createModel(): M

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        @Suppress("UNCHECKED_CAST")
        model = lastNonConfigurationInstance as M? ?: createModel()
    }

    override fun onRetainNonConfigurationInstance(): Any = model

    override fun onDestroy() {
        views.cancel()
        if (!isChangingConfigurations) model.close()
        super.onDestroy()
    }

    /** Shows every value of [states] as long as the views exist. */
    protected fun <T> show(states: Flow<T>, render: (T) -> Unit) {
        views.launch { states.collect { render(it) } }
    }
}
