package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.tokenizer.Tokenizer

/** What a session is made of, opened. */
internal class SessionParts private constructor(
    val tokenizer: Tokenizer,
    val prompt: PromptBuilder,
    val decoder: Decoder,
    val encoder: ImageEncoder,
    private val stages: StageSessions,
) {
    /** Cancels all images, and frees the graphs. */
    fun close() {
        encoder.close()
        stages.close()
    }

    companion object {
        /**
         * Opens everything that [variant] needs.
         *
         * @param checkCancelled is called between graphs; it may throw.
         */
        fun open(bundle: Bundle, variant: VariantSpec, options: SessionOptions, checkCancelled: () -> Unit): SessionParts {
            val stages = StageSessions(bundle, variant, options.engines, options.threads)
            val vision = VisionPipeline(
                variant,
                { stage ->
                    // The producer's patch embedding is small, and shares the cores with the stages that it feeds.
                    stages.open(stage, if (options.overlap && stage in variant.chain("patch_embed")) 1 else options.threads)
                },
                options.visionBatch ?: variant.visionBatch,
                options.overlap,
                options.trace,
            )
            try {
                return options.trace.span("load") { open(bundle, variant, options, stages, vision, checkCancelled) }
            } catch (error: Throwable) {
                vision.release()
                stages.close()
                throw error
            }
        }

        private fun open(
            bundle: Bundle,
            variant: VariantSpec,
            options: SessionOptions,
            stages: StageSessions,
            vision: VisionPipeline,
            checkCancelled: () -> Unit,
        ): SessionParts {
            val manifest = bundle.manifest
            val tokenizer = openTokenizer(bundle)
            val prompt = PromptBuilder(manifest.prompt, tokenizer, manifest.tokenizer.addSpecialTokens)
            val opened = DecoderContract.stageNames(variant).associateWith {
                checkCancelled()
                stages.shared(it)
            }
            val decoder = Decoder(variant, opened, options.trace, options.memory)
            checkCancelled()
            vision.load()
            val cacheBytes = options.imageCacheMb.toLong() shl 20
            val encoder =
                ImageEncoder(bundle, variant, vision, options.imageDecoder, options.release, cacheBytes, options.trace)
            return SessionParts(tokenizer, prompt, decoder, encoder, stages)
        }

        private fun openTokenizer(bundle: Bundle): Tokenizer {
            val manifest = bundle.manifest
            val file = manifest.tokenizer.file
            val tokenizer = Tokenizer.open(bundle.file(file), file)
            val token = manifest.prompt.imageToken
            val wanted = manifest.tokenizer.imageTokenId
            val found = tokenizer.tokenId(token)
            if (found != wanted) {
                throw BundleException(
                    "manifest.json: image_token_id is $wanted, the tokenizer's id of '${shorten(token)}' is $found",
                    "export the checkpoint again",
                )
            }
            return tokenizer
        }
    }
}
