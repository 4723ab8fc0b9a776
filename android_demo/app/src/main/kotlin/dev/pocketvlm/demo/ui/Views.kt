package dev.pocketvlm.demo.ui

import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.TextView

fun View.visibleIf(visible: Boolean) {
    visibility = if (visible) View.VISIBLE else View.GONE
}

/** Shows [text], or nothing at all where it is empty. */
fun TextView.showText(text: CharSequence) {
    visibleIf(text.isNotEmpty())
    // The same text again would be read out again, and would lose the selection.
    if (this.text.toString() != text.toString()) this.text = text
}

/** Makes the group's children those of [items]: views that are there are filled again, so that focus stays where it is. */
fun <T> ViewGroup.fill(items: List<T>, layout: Int, show: (View, T) -> Unit) {
    while (childCount > items.size) removeViewAt(childCount - 1)
    items.forEachIndexed { index, item ->
        val view = getChildAt(index) ?: LayoutInflater.from(context).inflate(layout, this, false).also(::addView)
        show(view, item)
    }
}
