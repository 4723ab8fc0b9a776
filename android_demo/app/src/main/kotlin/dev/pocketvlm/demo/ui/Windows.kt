package dev.pocketvlm.demo.ui

import android.app.Activity
import android.os.Build
import android.view.View
import android.view.WindowInsets
import android.widget.Toolbar
import dev.pocketvlm.demo.R

/** Makes the toolbar of the layout the screen's, with a way back on all screens but the first. */
fun Activity.setUpBar(first: Boolean = false) {
    val bar = findViewById<Toolbar>(R.id.bar)
    setActionBar(bar)
    if (first) return
    actionBar?.setDisplayHomeAsUpEnabled(true)
    bar.navigationIcon = getDrawable(R.drawable.ic_back)?.apply { setTint(getColor(R.color.text_quiet)) }
    bar.navigationContentDescription = getString(R.string.back)
    bar.contentInsetStartWithNavigation = 0
    bar.setNavigationOnClickListener { finish() }
}

/** Keeps the content clear of the system's bars, of cut-outs and of the keyboard: from Android 15 on, windows lie under them. */
fun View.keepClearOfSystemBars() = setOnApplyWindowInsetsListener { view, insets ->
    if (Build.VERSION.SDK_INT >= 30) {
        val kinds = WindowInsets.Type.systemBars() or WindowInsets.Type.displayCutout() or WindowInsets.Type.ime()
        val covered = insets.getInsets(kinds)
        view.setPadding(covered.left, covered.top, covered.right, covered.bottom)
        WindowInsets.CONSUMED
    } else {
        padByOldInsets(view, insets)
    }
}

@Suppress("DEPRECATION") // What Android 8 to 10 have.
private fun padByOldInsets(view: View, insets: WindowInsets): WindowInsets {
    with(insets) { view.setPadding(systemWindowInsetLeft, systemWindowInsetTop, systemWindowInsetRight, systemWindowInsetBottom) }
    return insets.consumeSystemWindowInsets()
}
