package dev.pocketvlm.demo.bench

import android.content.ActivityNotFoundException
import android.content.Intent
import android.net.Uri
import android.os.Bundle
import android.view.View
import dev.pocketvlm.demo.ModelActivity
import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.container
import dev.pocketvlm.demo.images.PicturePicker
import dev.pocketvlm.demo.ui.keepClearOfSystemBars
import dev.pocketvlm.demo.ui.setUpBar

/** Measures the model in use on this phone. */
class BenchmarkActivity : ModelActivity<BenchmarkViewModel>() {
    private lateinit var picker: PicturePicker

    override fun createModel(): BenchmarkViewModel =
        container.let { BenchmarkViewModel(it.sessions, it.platform.codec, it.pictures, it.device) }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_benchmark)
        setUpBar()
        findViewById<View>(R.id.root).keepClearOfSystemBars()
        picker = PicturePicker(this, savedInstanceState)
        val screen = BenchmarkScreen(this, model, ::pick)
        findViewById<View>(R.id.save).setOnClickListener { chooseFile() }
        findViewById<View>(R.id.share).setOnClickListener { share() }
        show(model.state, screen::show)
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        picker.onActivityResult(requestCode, resultCode, data).firstOrNull()?.let(model::choose)
        val target: Uri? = data?.data
        if (requestCode == SAVE && resultCode == RESULT_OK && target != null) model.save(contentResolver, target)
    }

    private fun pick() {
        if (!picker.pick()) model.report(Problem.Known(R.string.no_picker, R.string.no_picker_hint))
    }

    private fun chooseFile() {
        val intent = Intent(Intent.ACTION_CREATE_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE)
            .setType("application/json").putExtra(Intent.EXTRA_TITLE, "pocketvlm-bench.json")
        try {
            startActivityForResult(intent, SAVE)
        } catch (_: ActivityNotFoundException) {
            model.report(Problem.Known(R.string.save_failed, R.string.save_failed_hint))
        }
    }

    private fun share() {
        val done = model.state.value.measurement as? Measurement.Done ?: return
        val intent = Intent(Intent.ACTION_SEND).setType("text/plain").putExtra(Intent.EXTRA_TEXT, done.json)
        startActivity(Intent.createChooser(intent, getString(R.string.share_json)))
    }

    companion object {
        const val SAVE = 10
    }
}
