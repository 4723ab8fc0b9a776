package dev.pocketvlm.demo.session

import android.content.Context

/** What the app remembers. */
class Preferences(context: Context) {
    private val stored = context.getSharedPreferences("demo", Context.MODE_PRIVATE)

    /** Name of the bundle in use. */
    var selectedBundle: String?
        get() = stored.getString(BUNDLE, null)
        set(value) = stored.edit().putString(BUNDLE, value).apply()

    private companion object {
        const val BUNDLE = "bundle"
    }
}
