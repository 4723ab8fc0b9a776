package dev.pocketvlm.demo.bundles

import android.app.AlertDialog
import android.content.ActivityNotFoundException
import android.content.Intent
import android.os.Bundle
import android.text.format.Formatter
import android.view.View
import android.view.ViewGroup
import android.widget.TextView
import dev.pocketvlm.demo.ModelActivity
import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.container
import dev.pocketvlm.demo.ui.ProblemBanner
import dev.pocketvlm.demo.ui.fill
import dev.pocketvlm.demo.ui.keepClearOfSystemBars
import dev.pocketvlm.demo.ui.setUpBar

/** The bundles on this phone: import, choose, delete. */
class BundlesActivity : ModelActivity<BundlesViewModel>() {
    private lateinit var banner: ProblemBanner
    private lateinit var importCard: ImportCard
    private lateinit var cards: BundleCards

    override fun createModel(): BundlesViewModel =
        container.let { BundlesViewModel(it.store, it.catalogue, it.pushed, it.imports, it.sessions) }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_bundles)
        setUpBar()
        findViewById<View>(R.id.root).keepClearOfSystemBars()
        banner = ProblemBanner(this, model::dismissProblem)
        importCard = ImportCard(this, model::cancelImport, model::acknowledgeImport)
        cards = BundleCards(this, model::use, ::confirmDelete)
        findViewById<View>(R.id.import_zip).setOnClickListener { pickZip() }
        findViewById<View>(R.id.refresh).setOnClickListener { model.refresh() }
        findViewById<TextView>(R.id.pushed_command).text =
            getString(R.string.pushed_command, container.pushed.folder?.path.orEmpty())
        show(model.state, ::show)
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        val uri = data?.data ?: return
        if (requestCode == PICK_ZIP && resultCode == RESULT_OK) model.import(ZipDocument(contentResolver, uri))
    }

    private fun show(state: BundlesState) {
        banner.show(state.problem)
        importCard.show(state.import)
        findViewById<View>(R.id.import_zip).isEnabled = state.import !is ImportState.Running
        val shelf = state.shelf as? Shelf.Loaded ?: return
        cards.show(shelf)
        findViewById<ViewGroup>(R.id.pushed).fill(shelf.pushed, R.layout.pushed) { view, source ->
            view.findViewById<TextView>(R.id.pushed_name).text = source.name
            val button = view.findViewById<View>(R.id.pushed_import)
            button.contentDescription = getString(R.string.import_named, source.name)
            button.isEnabled = state.import !is ImportState.Running
            button.setOnClickListener { model.import(source) }
        }
    }

    private fun pickZip() {
        val intent = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("*/*")
            // Some file managers know no type for zips.
            .putExtra(Intent.EXTRA_MIME_TYPES, arrayOf("application/zip", "application/octet-stream"))
        try {
            startActivityForResult(intent, PICK_ZIP)
        } catch (_: ActivityNotFoundException) {
            model.report(Problem.Known(R.string.no_files_app, R.string.no_files_app_hint))
        }
    }

    private fun confirmDelete(entry: BundleEntry) {
        AlertDialog.Builder(this)
            .setTitle(getString(R.string.delete_question, entry.name))
            .setMessage(getString(R.string.delete_text, Formatter.formatShortFileSize(this, entry.bytes)))
            .setPositiveButton(R.string.delete) { _, _ -> model.delete(entry.name) }
            .setNegativeButton(R.string.cancel, null)
            .show()
    }

    companion object {
        const val PICK_ZIP = 1
    }
}
