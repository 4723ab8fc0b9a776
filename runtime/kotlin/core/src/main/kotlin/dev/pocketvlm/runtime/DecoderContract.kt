package dev.pocketvlm.runtime

/** What the stages of a decoder take and give, and in which order its graphs run. */
internal object DecoderContract {
    val STAGES: List<String> = listOf("embed_tokens", "prefill", "decode")

    /** The graphs of "prefill" or "decode" in the order in which they run, without lm_head. */
    fun chain(variant: VariantSpec, name: String): List<String> =
        listOf("${name}_positions").filter { it in variant.stages } + variant.chain(name)

    /** All graphs of the decoder. */
    fun stageNames(variant: VariantSpec): List<String> =
        listOf("embed_tokens") + chain(variant, "prefill") + chain(variant, "decode") +
            listOf("lm_head").filter { it in variant.stages }

    /**
     * Refuses graphs whose inputs nothing gives, whose outputs nothing takes, or whose shapes differ from each other.
     *
     * @throws BundleException naming stage and tensor.
     */
    fun check(variant: VariantSpec) {
        val cache = variant.kvCache
        val stages = variant.stages
        val past = listOf("key", "value").flatMap { kind -> (0 until cache.layers).map { "past_$kind.$it" } }.toSet()
        val written = if (cache.protocol == CacheProtocol.IN_PLACE) "present" else "new"
        val new = past.map { it.replaceFirst("past", written) }
        for (name in listOf("prefill", "decode")) {
            val parts = chain(variant, name).map(stages::getValue)
            val wanted = new.toMutableSet()
            if ("lm_head" in stages) {
                wanted += "hidden"
            } else if (name == "decode" || parts.any { part -> part.outputs.any { it.name == "logits" } }) {
                wanted += "logits"
            }
            checkChain(name, parts, setOf("embeddings", "past_length") + past, wanted)
            for (tensor in parts.flatMap { it.inputs + it.outputs }) checkTensor(name, tensor, cache)
        }
        checkChain("embed_tokens", listOf(stages.getValue("embed_tokens")), setOf("token_ids"), setOf("embeddings"))
        requireFloats("embed_tokens", stages.getValue("embed_tokens").outputs)
        stages["lm_head"]?.let {
            checkChain("lm_head", listOf(it), setOf("hidden"), setOf("logits"))
            requireFloats("lm_head", it.inputs + it.outputs)
        }
        val fixed = chain(variant, "prefill").map(stages::getValue).any { part ->
            part.inputs.any { it.name == "embeddings" && it.size(1) != null }
        }
        if (fixed && cache.protocol == CacheProtocol.IN_PLACE) {
            // A padded chunk near the end would be written past the capacity.
            throw BundleException("manifest.json: stage prefill has a fixed length with the in_place cache protocol")
        }
        if (cache.keysTransposed && cache.protocol == CacheProtocol.IN_PLACE) {
            throw BundleException("manifest.json: transposed keys go with the cache protocol columns only")
        }
    }

    /** Size of the last dimension. */
    fun lastSize(tensor: TensorSpec): Int = tensor.size(tensor.shape.lastIndex)
        ?: throw BundleException("manifest.json: the last dimension of '${tensor.name}' must be a number, not ${tensor.shape.last()}")

    private fun checkTensor(stage: String, tensor: TensorSpec, cache: KvCacheSpec) {
        if (tensor.name in TOUCHED) requireFloats(stage, listOf(tensor))
        val kind = CACHE_TENSOR.matchEntire(tensor.name) ?: return
        // Buffers are bound as the manifest's cache describes them.
        if (tensor.type != cache.type) {
            throw BundleException("manifest.json: stage $stage has ${tensor.name} as ${tensor.type}, the cache is ${cache.type}")
        }
        if (kind.groupValues[1] == "new") return
        val columns = listOf(cache.capacity, cache.headDim)
        val transposed = cache.keysTransposed && kind.groupValues[2] == "key"
        val wanted = (listOf(1, cache.kvHeads) + if (transposed) columns.reversed() else columns).map(Dimension::Fixed)
        // A graph may leave a dimension open.
        val fits = tensor.shape.size == wanted.size && tensor.shape.zip(wanted).all { (it.first is Dimension.Named) || it.first == it.second }
        if (!fits) {
            throw BundleException("manifest.json: stage $stage has ${tensor.name} as ${tensor.shape}, the cache has $wanted")
        }
    }

    private val TOUCHED = setOf("embeddings", "logits", "hidden")
    private val CACHE_TENSOR = Regex("(past|present|new)_(key|value)\\.[0-9]+")
}
