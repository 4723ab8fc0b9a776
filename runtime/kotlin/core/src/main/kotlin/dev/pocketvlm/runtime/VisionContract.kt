package dev.pocketvlm.runtime

/** What the vision stages take and give, and in which order their graphs run. */
internal object VisionContract {
    val STAGES: List<String> = listOf("patch_embed", "vision_encoder", "connector")

    private val TENSORS = mapOf(
        "patch_embed" to ("pixels" to "patches"),
        "vision_encoder" to ("patches" to "features"),
        "connector" to ("features" to "tokens"),
    )

    /** All graphs of the vision stages. */
    fun stageNames(variant: VariantSpec): List<String> = STAGES.flatMap(variant::chain)

    /** Refuses stages that do not lead from their input to their output, one tensor each, through their parts. */
    fun check(variant: VariantSpec) {
        for ((name, ends) in TENSORS) {
            val parts = variant.chain(name).map(variant.stages::getValue)
            checkChain(name, parts, setOf(ends.first), setOf(ends.second))
        }
        requireFloats("patch_embed", variant.stages.getValue(variant.chain("patch_embed").first()).inputs)
        requireFloats("connector", variant.stages.getValue(variant.chain("connector").last()).outputs)
    }

    /**
     * Refuses a variant whose vision stages do not take the tiles, or do not give the tokens, that the manifest speaks of.
     *
     * @throws BundleException naming stage and tensor.
     */
    fun checkSizes(manifest: Manifest, variant: VariantSpec) {
        val side = manifest.tiling.tileSize
        val tokens = manifest.imageTokens.rows * manifest.imageTokens.cols
        variant.chain("patch_embed").firstOrNull()?.let { name ->
            val pixels = variant.stages.getValue(name).inputs[0]
            val fits = pixels.shape.drop(2) == listOf(Dimension.Fixed(side), Dimension.Fixed(side))
            if (!fits) throw mismatch(variant, name, pixels, side, tokens)
        }
        variant.chain("connector").lastOrNull()?.let { name ->
            val visual = variant.stages.getValue(name).outputs[0]
            if (visual.shape.getOrNull(1) != Dimension.Fixed(tokens)) throw mismatch(variant, name, visual, side, tokens)
        }
    }

    private fun mismatch(variant: VariantSpec, stage: String, tensor: TensorSpec, side: Int, tokens: Int) = BundleException(
        "manifest.json: variant '${variant.name}', stage $stage: ${tensor.name} has the shape ${tensor.shape}, " +
            "but tiles have $side pixels a side and give $tokens tokens",
        "export the checkpoint again",
    )
}

/** Refuses another type where this runtime itself reads or writes the numbers. */
internal fun requireFloats(stage: String, tensors: List<TensorSpec>) {
    val other = tensors.firstOrNull { it.type != TensorType.FLOAT32 } ?: return
    throw BundleException("manifest.json: stage $stage has ${other.name} as ${other.type}, not FLOAT32", "update PocketVLM")
}
