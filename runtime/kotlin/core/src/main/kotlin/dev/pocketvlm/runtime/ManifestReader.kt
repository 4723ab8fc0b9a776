package dev.pocketvlm.runtime

import com.google.gson.JsonElement
import com.google.gson.JsonObject
import com.google.gson.JsonPrimitive

/** Reads `manifest.json` strictly, and checks what its parts say of each other. */
public object ManifestReader {
    /**
     * Reads and checks the text of `manifest.json`.
     *
     * @throws BundleException not JSON, another major schema, a missing or mistyped field, an unsafe or unlisted path.
     */
    public fun parse(text: String): Manifest {
        if (text.length > Manifest.MAX_BYTES) {
            throw BundleException("$ROOT is larger than ${Manifest.MAX_BYTES} bytes", "it is not one of ours")
        }
        val raw = parseJson(text, ROOT)
        val version = readVersion(raw)
        if (version.major != Manifest.SCHEMA_MAJOR) {
            val hint = if (version.major > Manifest.SCHEMA_MAJOR) "update PocketVLM" else "export the checkpoint again"
            throw BundleException(
                "$ROOT has schema ${version.major}.${version.minor}; this reader knows ${Manifest.SCHEMA_MAJOR}.x",
                hint,
            )
        }
        val fields = JsonFields(raw, ROOT, ignoreUnknown = version.minor > Manifest.SCHEMA_MINOR)
        val manifest = readManifest(fields, version)
        fields.refuseUnknown()
        ManifestRules.check(manifest)
        return manifest
    }

    private fun readVersion(raw: JsonElement): SchemaVersion {
        val found = (raw as? JsonObject)?.get("schema") as? JsonObject
        val numbers = listOf("major", "minor").map { key -> (found?.get(key) as? JsonPrimitive)?.takeIf { it.isNumber } }
        if (numbers.any { it == null }) throw BundleException("$ROOT has no schema version", "it is not a PocketVLM bundle")
        val (major, minor) = numbers.map { readInt(it!!, "$ROOT.schema") }
        return SchemaVersion(major, minor)
    }

    private fun readManifest(fields: JsonFields, version: SchemaVersion) = Manifest(
        schema = fields.nested("schema") { SchemaVersion(it.int("major"), it.int("minor")) }.also { check(it == version) },
        pocketvlm = fields.text("pocketvlm"),
        model = fields.nested("model", ::readModel),
        tiling = fields.nested("tiling", ::readTiling),
        image = fields.nested("image", ::readImage),
        imageTokens = fields.nested("image_tokens", ::readImageTokens),
        prompt = fields.nested("prompt", ::readPrompt),
        tokenizer = fields.nested("tokenizer", ::readTokenizer),
        generation = fields.nested("generation", ::readGeneration),
        variants = fields.required("variants", readObjects(fields, ::readVariant)),
        files = fields.required(
            "files",
            readObjects(fields) { FileSpec(it.text("path"), it.required("bytes", ::readLong), it.text("sha256")) },
        ),
    )

    private fun readModel(fields: JsonFields) = ModelInfo(
        name = fields.text("name"),
        architecture = fields.text("architecture"),
        hiddenSize = fields.int("hidden_size"),
        vocabSize = fields.int("vocab_size"),
        parameters = fields.required("parameters", ::readLong),
        licence = fields.text("licence"),
        source = fields.text("source"),
        weightsSha256 = fields.text("weights_sha256"),
    ).also { fields.anyObject("spec") }

    private fun readTiling(fields: JsonFields) = TilingSpec(
        policy = fields.text("policy"),
        tileSize = fields.int("tile_size"),
        grids = fields.required("grids", readList { value, where -> readGrid(value, where) }),
        thumbnail = fields.required("thumbnail") { value, where -> readChoice<Thumbnail>(value, where) },
        alpha = fields.optional("alpha", 0.1, ::readDouble),
        fit = fields.optional("fit", Fit.PAD) { value, where -> readChoice<Fit>(value, where) },
    )

    private fun readGrid(value: JsonElement, where: String): Grid {
        val (cols, rows) = readListOf(2, ::readInt)(value, where)
        return Grid(cols, rows)
    }

    private fun readImage(fields: JsonFields) = ImageSpec(
        mean = fields.required("mean", readListOf(3, ::readDouble)),
        std = fields.required("std", readListOf(3, ::readDouble)),
        rescale = fields.optional("rescale", 1.0 / 255, ::readDouble),
        resample = fields.optional("resample", Resample.BICUBIC) { value, where -> readChoice<Resample>(value, where) },
        background = fields.optional("background", listOf(0, 0, 0), readListOf(3, ::readInt)),
        maxPixels = fields.optional("max_pixels", 100_000_000, ::readLong),
    )

    private fun readImageTokens(fields: JsonFields) = ImageTokensSpec(
        rows = fields.int("rows"),
        cols = fields.int("cols"),
        arrangement = fields.required("arrangement") { value, where -> readChoice<Arrangement>(value, where) },
        thumbnailFirst = fields.optional("thumbnail_first", true, ::readFlag),
        newline = fields.optional("newline", "", ::readText),
    )

    internal fun readPrompt(fields: JsonFields) = PromptSpec(
        start = fields.required("start", readMap(::readText)),
        between = fields.required("between", readMap(::readText)),
        end = fields.required("end", readMap(::readText)),
        generation = fields.required("generation", readMap(::readText)),
        trim = fields.required("trim", readList(::readText)),
        image = fields.text("image"),
        imageToken = fields.text("image_token"),
        imagesFirst = fields.flag("images_first"),
        within = fields.optional("within", emptyMap(), readMap(::readText)),
        trimLeft = fields.optional("trim_left", emptyList(), readList(::readText)),
        trimRight = fields.optional("trim_right", emptyList(), readList(::readText)),
        blank = fields.optional("blank", emptyList(), readList(::readText)),
    )

    private fun readTokenizer(fields: JsonFields) = TokenizerSpec(
        file = fields.text("file"),
        imageTokenId = fields.int("image_token_id"),
        stopTokenIds = fields.required("stop_token_ids", readList(::readInt)),
        addSpecialTokens = fields.optional("add_special_tokens", false, ::readFlag),
    )

    private fun readGeneration(fields: JsonFields) = GenerationSpec(
        temperature = fields.optional("temperature", 0.0, ::readDouble),
        topK = fields.optional("top_k", 0, ::readInt),
        topP = fields.optional("top_p", 1.0, ::readDouble),
        minP = fields.optional("min_p", 0.0, ::readDouble),
        repetitionPenalty = fields.optional("repetition_penalty", 1.0, ::readDouble),
    )

    private fun readVariant(fields: JsonFields) = VariantSpec(
        name = fields.text("name"),
        target = fields.text("target"),
        precision = fields.text("precision"),
        engine = fields.text("engine"),
        engineOptions = fields.required("engine_options", readMap(::readText)),
        visionBatch = fields.int("vision_batch"),
        stages = fields.required("stages", readMap { value, where -> fields.objectAt(value, where, ::readStage) }),
        kvCache = fields.nested("kv_cache", ::readCache),
        toolchain = fields.required("toolchain", readMap(::readText)),
        device = fields.optional("device", null) { value, where ->
            if (value.isJsonNull) null else fields.objectAt(value, where, ::readDevice)
        },
    )

    private fun readStage(fields: JsonFields) = StageSpec(
        file = fields.text("file"),
        inputs = fields.required("inputs", readObjects(fields, ::readTensor)),
        outputs = fields.required("outputs", readObjects(fields, ::readTensor)),
        externalData = fields.optional("external_data", emptyList(), readList(::readText)),
        kernels = fields.optional("kernels", emptyMap(), readMap(::readInt)),
        engine = fields.optional("engine", "", ::readText),
        engineOptions = fields.optional("engine_options", emptyMap(), readMap(::readText)),
    )

    private fun readTensor(fields: JsonFields) = TensorSpec(
        name = fields.text("name"),
        type = fields.required("dtype") { value, where -> readChoice<TensorType>(value, where) },
        shape = fields.required("shape", readList(::readDimension)),
    )

    private fun readDimension(value: JsonElement, where: String): Dimension =
        if ((value as? JsonPrimitive)?.isString == true) Dimension.Named(value.asString) else Dimension.Fixed(readInt(value, where))

    private fun readCache(fields: JsonFields) = KvCacheSpec(
        type = fields.required("dtype") { value, where ->
            val type = readChoice<TensorType>(value, where)
            if (type !in CACHE_TYPES) throw BundleException("$where: '${type.name.lowercase()}' is no type of a cache")
            type
        },
        protocol = fields.required("protocol") { value, where -> readChoice<CacheProtocol>(value, where) },
        layers = fields.int("layers"),
        kvHeads = fields.int("kv_heads"),
        headDim = fields.int("head_dim"),
        capacity = fields.int("capacity"),
        chunkSize = fields.int("chunk_size"),
        keysTransposed = fields.optional("keys_transposed", false, ::readFlag),
    )

    private fun readDevice(fields: JsonFields) =
        DeviceSpec(fields.text("soc"), fields.int("soc_model"), fields.int("architecture"), fields.text("qairt"))

    private fun <T> readObjects(outer: JsonFields, read: (JsonFields) -> T): (JsonElement, String) -> List<T> =
        readList { value, where -> outer.objectAt(value, where, read) }

    private val CACHE_TYPES = setOf(TensorType.INT8, TensorType.FLOAT32, TensorType.FLOAT16, TensorType.UINT8)
    private const val ROOT = Manifest.NAME
}
