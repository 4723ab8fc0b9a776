package dev.pocketvlm.runtime.tokenizer

import dev.pocketvlm.runtime.BundleException

/** tokenizer.json is damaged, or wants what this tokenizer does not have. `Tokenizer.open` makes a BundleException of it. */
internal class MalformedTokenizer(message: String) : Exception(message)

/** The tokenizer cannot encode or decode this, or not in reasonable time. `Tokenizer` makes a BundleException of it. */
internal class TokenizerFailure(message: String) : Exception(message)

internal inline fun <T> reportingFailure(action: () -> T): T = try {
    action()
} catch (failure: TokenizerFailure) {
    throw BundleException("tokenizer.json fails on this text: ${failure.message}", "export the checkpoint again", failure)
}
