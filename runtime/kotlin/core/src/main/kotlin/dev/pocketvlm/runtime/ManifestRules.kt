package dev.pocketvlm.runtime

import dev.pocketvlm.runtime.tiling.GRID_POLICIES

/** What the parts of a manifest must say of each other, and between which bounds. */
internal object ManifestRules {
    private const val MAX_TILE_SIZE = 4096
    private const val MAX_GRIDS = 1000
    private const val MAX_GRID_SIDE = 100

    /** An image is brought to the size of its grid, in memory, before it is cut. */
    private const val MAX_GRID_PIXELS = 1L shl 25
    private const val MAX_PATH = 1024

    // Bounds for what normalises pixels: real values are near 1, and beyond these float32 makes noise of the image.
    private const val SMALL = 1e-6
    private const val LARGE = 1e6
    private const val EXPORT_AGAIN = "export the checkpoint again"

    private val PART = Regex("[A-Za-z0-9._+-]{1,100}")
    private val SHA256 = Regex("[0-9a-f]{64}")
    private val QAIRT_VERSION = Regex("[0-9]{1,4}(\\.[0-9]{1,6}){1,3}")

    /**
     * Refuses every path that could leave the bundle: an absolute path, a drive, a backslash, an empty part, "." or "..",
     * more than 1,024 characters.
     */
    fun checkRelativePath(path: String, where: String = Manifest.NAME) {
        if (path.length > MAX_PATH) {
            throw BundleException("$where: file path of ${path.length} characters: ${path.take(40)}...", "it is not one of ours")
        }
        if (!path.split("/").all { PART.matches(it) && it != "." && it != ".." }) {
            throw BundleException("$where: unsafe file path '${shorten(path)}'", "the bundle was tampered with; export it again")
        }
    }

    fun check(manifest: Manifest) {
        checkPaths(manifest)
        checkImages(manifest)
        checkGeneration(manifest.generation)
        if (manifest.variants.isEmpty()) throw BundleException("manifest.json holds no variant", EXPORT_AGAIN)
        manifest.variants.forEach(::checkVariant)
    }

    private fun checkPaths(manifest: Manifest) {
        val listed = manifest.files.map { it.path }.toSet()
        if (listed.size != manifest.files.size) throw BundleException("manifest.json lists a file twice", EXPORT_AGAIN)
        val named = buildList {
            add(manifest.tokenizer.file)
            if (manifest.imageTokens.newline.isNotEmpty()) add(manifest.imageTokens.newline)
            for (stage in manifest.variants.flatMap { it.stages.values }) {
                add(stage.file)
                addAll(stage.externalData)
            }
        }
        (listed + named).forEach { checkRelativePath(it) }
        named.firstOrNull { it !in listed }?.let {
            throw BundleException("manifest.json uses '$it' but does not list it under files", EXPORT_AGAIN)
        }
        manifest.files.firstOrNull { it.bytes < 0 || !SHA256.matches(it.sha256) }?.let {
            throw BundleException("manifest.json: bad size or sha256 of '${it.path}'", EXPORT_AGAIN)
        }
    }

    private fun checkImages(manifest: Manifest) {
        val tiling = manifest.tiling
        val tokens = manifest.imageTokens
        val image = manifest.image
        if (tiling.policy !in GRID_POLICIES) {
            throw BundleException(
                "manifest.json.tiling.policy: '${shorten(tiling.policy)}' is none of ${GRID_POLICIES.keys.sorted().joinToString()}",
                "update PocketVLM",
            )
        }
        require(tiling.tileSize in 1..MAX_TILE_SIZE && tiling.grids.size in 1..MAX_GRIDS) {
            "tiling needs a tile_size of 1 to $MAX_TILE_SIZE and 1 to $MAX_GRIDS grids"
        }
        require(tiling.grids.all { it.cols in 1..MAX_GRID_SIDE && it.rows in 1..MAX_GRID_SIDE }) {
            "tiling grids must lie between 1x1 and ${MAX_GRID_SIDE}x$MAX_GRID_SIDE"
        }
        require(tiling.grids.all { it.tiles.toLong() * tiling.tileSize * tiling.tileSize <= MAX_GRID_PIXELS }) {
            "a tiling grid has more than $MAX_GRID_PIXELS pixels"
        }
        require(tokens.rows in 1..4096 && tokens.cols in 1..4096) {
            "${tokens.rows}x${tokens.cols} image tokens a tile, not between 1x1 and 4096x4096"
        }
        require(tiling.alpha in 0.0..1.0) { "tiling alpha is ${tiling.alpha}, not between 0 and 1" }
        require(image.maxPixels >= 1 && image.rescale > SMALL && image.rescale < LARGE) {
            "image rescale and max_pixels must be positive, and numbers of a sane size"
        }
        require(image.std.all { it > SMALL && it < LARGE } && image.mean.all { it >= -LARGE && it <= LARGE }) {
            "image mean and std are not numbers that pixels can be normalised with"
        }
        require(image.background.all { it in 0..255 }) { "image background ${image.background} is no colour of 0 to 255" }
    }

    private fun checkGeneration(generation: GenerationSpec) {
        val temperature = generation.temperature
        require(
            (temperature == 0.0 || temperature >= Manifest.LEAST_TEMPERATURE) &&
                generation.topK >= 0 &&
                generation.topP > 0 && generation.topP <= 1 &&
                generation.minP in 0.0..1.0 &&
                generation.repetitionPenalty > 0,
        ) { "a sampling default under generation is out of range" }
    }

    private fun checkVariant(variant: VariantSpec) {
        checkDevice(variant)
        val where = "variant '${variant.name}'"
        val cache = variant.kvCache
        for ((name, value, most) in listOf(
            Triple("vision_batch", variant.visionBatch, 4096),
            Triple("kv_cache.layers", cache.layers, 4096),
            Triple("kv_cache.kv_heads", cache.kvHeads, 4096),
            Triple("kv_cache.head_dim", cache.headDim, 4096),
            Triple("kv_cache.capacity", cache.capacity, 1 shl 24),
            Triple("kv_cache.chunk_size", cache.chunkSize, 1 shl 16),
        )) {
            require(value in 1..most) { "$where: $name is $value, not between 1 and $most" }
        }
        for ((name, stage) in variant.stages) {
            val place = "$where, stage $name"
            if (stage.engineOptions.isNotEmpty() && stage.engine.isEmpty()) {
                throw BundleException("manifest.json: $place has engine_options without an engine", EXPORT_AGAIN)
            }
            require(stage.inputs.isNotEmpty() && stage.outputs.isNotEmpty()) { "$place has no inputs or no outputs" }
            for (tensor in stage.inputs + stage.outputs) {
                require(tensor.shape.isNotEmpty() && tensor.shape.none { it is Dimension.Fixed && it.size < 1 }) {
                    "$place: ${tensor.name} cannot have the shape ${tensor.shape}"
                }
            }
        }
    }

    /** What runs on an NPU was compiled for a device, and the engine must be told of the same one. */
    private fun checkDevice(variant: VariantSpec) {
        val where = "manifest.json: variant '${variant.name}'"
        val device = variant.device
        if (device == null) {
            if (variant.engine == Manifest.NPU_ENGINE || variant.stages.values.any { it.engine == Manifest.NPU_ENGINE }) {
                throw BundleException("$where uses the engine ${Manifest.NPU_ENGINE} and names no device", EXPORT_AGAIN)
            }
            return
        }
        if (!QAIRT_VERSION.matches(device.qairt)) {
            throw BundleException(
                "$where: device.qairt is '${shorten(device.qairt)}', not a version such as 2.50.40",
                EXPORT_AGAIN,
            )
        }
        // What comes behind the colon of a target is the device that it is for.
        val wanted = variant.target.substringAfter(":", "")
        if (wanted.isNotEmpty() && wanted != device.soc) {
            throw BundleException(
                "$where is for target '${shorten(variant.target)}', and its device.soc is '${shorten(device.soc)}'",
                EXPORT_AGAIN,
            )
        }
        for (stage in variant.stages.keys) checkOptions(variant, stage, device, where)
        checkCommonBinaries(variant, where)
    }

    private fun checkOptions(variant: VariantSpec, stage: String, device: DeviceSpec, where: String) {
        val (engine, options) = variant.engineOf(stage)
        if (engine != Manifest.NPU_ENGINE) return
        for ((option, number) in listOf("soc_model" to device.socModel, "htp_arch" to device.architecture)) {
            val told = options[option] ?: continue
            if (told != number.toString()) {
                throw BundleException(
                    "$where, stage $stage: engine option $option is '${shorten(told)}', the device's number is $number",
                    EXPORT_AGAIN,
                )
            }
        }
    }

    /** Stages of one binary say so: opened without, they would end the process on an emulation. */
    private fun checkCommonBinaries(variant: VariantSpec, where: String) {
        val users = LinkedHashMap<String, MutableList<String>>()
        for ((name, stage) in variant.stages) {
            if (variant.engineOf(name).engine != Manifest.NPU_ENGINE) continue
            for (file in stage.externalData.distinct()) users.getOrPut(file) { mutableListOf() } += name
        }
        for ((file, names) in users) {
            val silent = names.firstOrNull { "shared_weights" !in variant.engineOf(it).options } ?: continue
            if (names.size > 1) {
                throw BundleException(
                    "$where, stage $silent: $file serves several stages, and the engine option shared_weights is missing",
                    EXPORT_AGAIN,
                )
            }
        }
    }

    private inline fun require(holds: Boolean, complaint: () -> String) {
        if (!holds) throw BundleException("manifest.json: ${complaint()}")
    }
}
