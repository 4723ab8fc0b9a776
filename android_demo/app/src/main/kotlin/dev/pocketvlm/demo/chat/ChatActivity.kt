package dev.pocketvlm.demo.chat

import android.content.Intent
import android.os.Bundle
import android.view.Menu
import android.view.MenuItem
import android.view.View
import dev.pocketvlm.demo.ModelActivity
import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.about.AboutActivity
import dev.pocketvlm.demo.bench.BenchmarkActivity
import dev.pocketvlm.demo.bundles.BundlesActivity
import dev.pocketvlm.demo.container
import dev.pocketvlm.demo.images.PicturePicker
import dev.pocketvlm.demo.ui.keepClearOfSystemBars
import dev.pocketvlm.demo.ui.setUpBar

/** Pictures, questions, answers. Also where the share sheet leads. */
class ChatActivity : ModelActivity<ChatViewModel>() {
    private lateinit var picker: PicturePicker

    override fun createModel(): ChatViewModel = container.let { ChatViewModel(it.sessions, it.pictures, it.device) }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_chat)
        setUpBar(first = true)
        findViewById<View>(R.id.root).keepClearOfSystemBars()
        picker = PicturePicker(this, savedInstanceState)
        val screen = ChatScreen(this, model, ::pick, ::takePhoto) { open(BundlesActivity::class.java) }
        show(model.state, screen::show)
        // A screen that comes back has its pictures.
        if (savedInstanceState == null) model.attach(PicturePicker.shared(intent))
    }

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        model.attach(PicturePicker.shared(intent))
    }

    override fun onSaveInstanceState(outState: Bundle) {
        super.onSaveInstanceState(outState)
        picker.saveState(outState)
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        model.attach(picker.onActivityResult(requestCode, resultCode, data))
    }

    override fun onCreateOptionsMenu(menu: Menu): Boolean {
        menuInflater.inflate(R.menu.chat, menu)
        return true
    }

    override fun onOptionsItemSelected(item: MenuItem): Boolean {
        when (item.itemId) {
            R.id.menu_new -> model.newConversation()
            R.id.menu_bundles -> open(BundlesActivity::class.java)
            R.id.menu_benchmark -> open(BenchmarkActivity::class.java)
            R.id.menu_about -> open(AboutActivity::class.java)
            else -> return super.onOptionsItemSelected(item)
        }
        return true
    }

    private fun pick() {
        if (!picker.pick()) model.report(Problem.Known(R.string.no_picker, R.string.no_picker_hint))
    }

    private fun takePhoto() {
        if (!picker.takePhoto()) model.report(Problem.Known(R.string.no_camera, R.string.no_camera_hint))
    }

    private fun open(screen: Class<*>) = startActivity(Intent(this, screen))
}
