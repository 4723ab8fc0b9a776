package dev.pocketvlm.demo.chat

import android.net.Uri
import dev.pocketvlm.demo.Problem
import dev.pocketvlm.demo.images.PictureReader
import dev.pocketvlm.demo.reporting
import dev.pocketvlm.runtime.CancelledException
import dev.pocketvlm.runtime.EncodedImage
import dev.pocketvlm.runtime.PocketVlmException
import dev.pocketvlm.runtime.VlmSession
import dev.pocketvlm.runtime.image.ImageSource
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch

/**
 * The pictures of the next question. Each is encoded from the moment on at which it is attached. Main thread only.
 *
 * @param report is told what is wrong with a picture; it is then not attached any more.
 */
class Attachments(
    private val scope: CoroutineScope,
    private val reader: PictureReader,
    private val report: (Problem) -> Unit,
) {
    private val current = MutableStateFlow<List<Attachment>>(emptyList())
    private var session: VlmSession? = null
    private var made = 0L

    val items: StateFlow<List<Attachment>> = current.asStateFlow()

    /** Reads a picture and begins to encode it. */
    fun add(uri: Uri) {
        scope.launch {
            reporting(report) {
                val attachment = Attachment(++made, reader.read(uri), null, Encoding.Waiting)
                current.update { it + attachment }
                begin(attachment)
            }
        }
    }

    /** Takes a picture away; the encoding ends. */
    fun remove(id: Long) {
        val attachment = current.value.find { it.id == id } ?: return
        current.update { it - attachment }
        attachment.encoded?.cancel()
    }

    /** Hands the pictures over to a question; those that are still being encoded go on. */
    fun take(): List<Attachment> = current.value.also { current.value = emptyList() }

    /** Attaches pictures again that a question did not use up, but for those that cannot be used. */
    suspend fun giveBack(attachments: List<Attachment>) {
        val usable = attachments.filter { isUsable(it.encoded) }
        current.update { usable + it }
        usable.forEach(::begin)
    }

    /** Encodes with another session from now on, or with none. */
    fun use(other: VlmSession?) {
        if (session === other) return
        session = other
        for (attachment in current.value) {
            change(attachment.id) { it.copy(encoded = null, encoding = Encoding.Waiting) }
            begin(attachment)
        }
    }

    private fun begin(attachment: Attachment) {
        val session = session ?: return
        reporting({ fail(attachment.id, it) }) {
            val encoded = session.encode(ImageSource.Bytes(attachment.picture.bytes))
            change(attachment.id) { it.copy(encoded = encoded, encoding = Encoding.Working(null)) }
            scope.launch { reporting({ fail(attachment.id, it) }) { follow(attachment.id, encoded) } }
        }
    }

    private suspend fun follow(id: Long, encoded: EncodedImage) {
        try {
            val plan = encoded.plan()
            change(id, encoded) { it.copy(encoding = Encoding.Working(plan)) }
            encoded.await()
            val milliseconds = encoded.visionMs.takeUnless { encoded.wasCached }
            change(id, encoded) { it.copy(encoding = Encoding.Done(plan, milliseconds)) }
        } catch (_: CancelledException) {
            // Taken away, or the session was closed: another one begins anew.
        }
    }

    private suspend fun isUsable(encoded: EncodedImage?): Boolean = try {
        if (encoded?.done == true) encoded.await()
        true
    } catch (error: PocketVlmException) {
        error is CancelledException
    }

    private fun fail(id: Long, problem: Problem) {
        val attached = current.value.any { it.id == id }
        current.update { items -> items.filter { it.id != id } }
        // With a question that has been sent, the answer tells.
        if (attached) report(problem)
    }

    private fun change(id: Long, encoded: EncodedImage, next: (Attachment) -> Attachment) =
        change(id) { if (it.encoded === encoded) next(it) else it }

    private fun change(id: Long, next: (Attachment) -> Attachment) =
        current.update { items -> items.map { if (it.id == id) next(it) else it } }
}
