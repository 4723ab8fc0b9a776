package dev.pocketvlm.demo.about

import android.os.Bundle
import android.view.View
import android.widget.TextView
import dev.pocketvlm.demo.ModelActivity
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.ViewModel
import dev.pocketvlm.demo.container
import dev.pocketvlm.demo.device.Device
import dev.pocketvlm.demo.ui.keepClearOfSystemBars
import dev.pocketvlm.demo.ui.setUpBar
import dev.pocketvlm.runtime.POCKETVLM_VERSION
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/** Reads the facts of the device once. */
class AboutViewModel(device: Device) : ViewModel() {
    private val found = MutableStateFlow<Map<String, Any?>>(emptyMap())

    val facts: StateFlow<Map<String, Any?>> = found.asStateFlow()

    init {
        scope.launch { found.value = withContext(Dispatchers.IO) { device.facts() } }
    }
}

/** Version, privacy, device and licences. */
class AboutActivity : ModelActivity<AboutViewModel>() {
    override fun createModel(): AboutViewModel = AboutViewModel(container.device)

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_about)
        setUpBar()
        findViewById<View>(R.id.root).keepClearOfSystemBars()
        findViewById<TextView>(R.id.about_version).text = getString(R.string.about_version, POCKETVLM_VERSION)
        show(model.facts) { facts ->
            findViewById<TextView>(R.id.about_device).text =
                facts.filterValues { it != null }.map { (name, value) -> "$name: $value" }.joinToString("\n")
        }
    }
}
