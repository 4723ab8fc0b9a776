package dev.pocketvlm.demo.bundles

import android.app.Activity
import android.text.format.Formatter
import android.view.View
import android.view.ViewGroup
import android.widget.ImageView
import android.widget.TextView
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.ui.Figures
import dev.pocketvlm.demo.ui.fill
import dev.pocketvlm.demo.ui.showText
import dev.pocketvlm.demo.ui.visibleIf

/** A card for each imported bundle: what it is, which of its variants run here, and why the others do not. */
class BundleCards(private val activity: Activity, private val use: (String) -> Unit, private val delete: (BundleEntry) -> Unit) {
    private val list: ViewGroup = activity.findViewById(R.id.bundles)
    private val none: View = activity.findViewById(R.id.bundles_none)
    private val figures = Figures(activity.resources)

    fun show(shelf: Shelf.Loaded) {
        none.visibleIf(shelf.entries.isEmpty())
        list.fill(shelf.entries, R.layout.bundle) { view, entry -> show(view, entry, entry.name == shelf.selected) }
    }

    private fun show(view: View, entry: BundleEntry, selected: Boolean) {
        view.findViewById<TextView>(R.id.bundle_name).showText(entry.name)
        view.findViewById<View>(R.id.bundle_selected).visibleIf(selected)
        view.findViewById<TextView>(R.id.bundle_facts).showText(facts(entry))
        view.findViewById<TextView>(R.id.bundle_licence).showText(if (entry is BundleEntry.Usable) licence(entry) else "")
        view.findViewById<ViewGroup>(R.id.bundle_variants).fill(rows(entry), R.layout.variant, ::showRow)
        val useButton = view.findViewById<View>(R.id.bundle_use)
        useButton.visibleIf(!selected && entry is BundleEntry.Usable)
        useButton.contentDescription = "${activity.getString(R.string.use)} ${entry.name}"
        useButton.setOnClickListener { use(entry.name) }
        val deleteButton = view.findViewById<View>(R.id.bundle_delete)
        deleteButton.contentDescription = activity.getString(R.string.delete_bundle, entry.name)
        deleteButton.setOnClickListener { delete(entry) }
    }

    private fun facts(entry: BundleEntry): String {
        val size = Formatter.formatShortFileSize(activity, entry.bytes)
        if (entry !is BundleEntry.Usable) return size
        return activity.getString(R.string.bundle_facts, entry.model, figures.parameters(entry.parameters), size)
    }

    private fun licence(entry: BundleEntry.Usable): String =
        activity.getString(R.string.licence, entry.licence.ifEmpty { activity.getString(R.string.licence_none) })

    private fun rows(entry: BundleEntry): List<Row> = when (entry) {
        is BundleEntry.Unusable -> listOf(
            Row(false, entry.problem.message(activity.resources), entry.problem.hint(activity.resources)),
        )
        is BundleEntry.Usable -> entry.variants.map { variant ->
            val name = activity.getString(R.string.variant_here, variant.target, variant.precision)
            val obstacle = variant.obstacle ?: return@map Row(true, name, activity.getString(R.string.variant_runs))
            Row(false, name, "${activity.getString(R.string.variant_not)}: ${obstacle.message(activity.resources)}")
        }
    }

    private fun showRow(view: View, row: Row) {
        val icon = view.findViewById<ImageView>(R.id.variant_icon)
        icon.setImageResource(if (row.good) R.drawable.ic_check else R.drawable.ic_blocked)
        icon.imageTintList = activity.getColorStateList(if (row.good) R.color.good else R.color.text_quiet)
        view.findViewById<TextView>(R.id.variant_name).showText(row.name)
        view.findViewById<TextView>(R.id.variant_reason).showText(row.told)
    }

    private data class Row(val good: Boolean, val name: String, val told: String)
}
