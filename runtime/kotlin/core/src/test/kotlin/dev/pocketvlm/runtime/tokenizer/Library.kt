package dev.pocketvlm.runtime.tokenizer

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer
import java.io.InputStream

/** Hugging Face's library, without padding and truncation, and without a word to the network. */
object Library {
    private val OPTIONS = mapOf("addSpecialTokens" to "false", "truncation" to "do_not_truncate", "padding" to "do_not_pad")

    fun prepare() {
        System.setProperty("ai.djl.offline", "true")
        System.setProperty("OPT_OUT_TRACKING", "true")
        System.setProperty("DJL_OPT_OUT_TRACKING", "true")
    }

    fun open(stream: InputStream): HuggingFaceTokenizer = HuggingFaceTokenizer.newInstance(stream, OPTIONS)

    fun open(json: String): HuggingFaceTokenizer = open(json.byteInputStream())
}
