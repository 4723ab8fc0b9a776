package dev.pocketvlm.demo.about

import android.app.Activity
import android.os.Bundle
import android.view.View
import android.widget.TextView
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.container
import dev.pocketvlm.demo.ui.keepClearOfSystemBars
import dev.pocketvlm.demo.ui.setUpBar
import dev.pocketvlm.runtime.POCKETVLM_VERSION

/** Version, privacy, device and licences. */
class AboutActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_about)
        setUpBar()
        findViewById<View>(R.id.root).keepClearOfSystemBars()
        findViewById<TextView>(R.id.about_version).text = getString(R.string.about_version, POCKETVLM_VERSION)
        findViewById<TextView>(R.id.about_device).text =
            container.device.facts().filterValues { it != null }.map { (name, value) -> "$name: $value" }.joinToString("\n")
    }
}
