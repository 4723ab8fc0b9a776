package dev.pocketvlm.runtime

/**
 * What `manifest.json` of a bundle says: the contract with the toolchain. docs/bundle.md explains every field; the Python
 * side of it is `runtime/manifest.py`. [ManifestReader] reads and checks it.
 */
public data class Manifest(
    val schema: SchemaVersion,
    val pocketvlm: String,
    val model: ModelInfo,
    val tiling: TilingSpec,
    val image: ImageSpec,
    val imageTokens: ImageTokensSpec,
    val prompt: PromptSpec,
    val tokenizer: TokenizerSpec,
    val generation: GenerationSpec,
    val variants: List<VariantSpec>,
    val files: List<FileSpec>,
) {
    public companion object {
        public const val SCHEMA_MAJOR: Int = 1
        public const val SCHEMA_MINOR: Int = 1
        public const val NAME: String = "manifest.json"
        public const val HASH_NAME: String = "manifest.json.sha256"
        public const val MAX_BYTES: Int = 4 * 1024 * 1024

        /** The engine whose graphs are compiled for one device. */
        public const val NPU_ENGINE: String = "onnxruntime-qnn"

        /** Less would overflow float32 when the logits are divided by it. */
        public const val LEAST_TEMPERATURE: Double = 1e-4
    }
}

/** Version of the format. */
public data class SchemaVersion(val major: Int, val minor: Int)

/** What was exported, for people. */
public data class ModelInfo(
    val name: String,
    val architecture: String,
    val hiddenSize: Int,
    val vocabSize: Int,
    val parameters: Long,
    val licence: String,
    val source: String,
    val weightsSha256: String,
)

/** How the image fills the grid: scaled to fit and padded, stretched, or scaled to cover and cropped. */
public enum class Fit { PAD, STRETCH, CROP }

/** Whether the whole picture is added as one more tile. */
public enum class Thumbnail { NEVER, SEVERAL_TILES, ALWAYS }

/** Order of the tiles' tokens in the prompt. */
public enum class Arrangement { TILE_BY_TILE, PICTURE_ROWS }

/** Filters, as Pillow defines them. */
public enum class Resample { BICUBIC, BILINEAR, LANCZOS }

/** Who writes new columns of the KV cache: the graph, or the runtime. */
public enum class CacheProtocol { IN_PLACE, COLUMNS }

/** Element types of tensors. */
public enum class TensorType(public val bytes: Int) {
    FLOAT32(4),
    FLOAT16(2),
    INT8(1),
    UINT8(1),
    INT32(4),
    INT64(8),
    BOOL(1),
}

/** Columns and rows of tiles. */
public data class Grid(val cols: Int, val rows: Int) {
    /** Tiles of the grid. */
    val tiles: Int get() = cols * rows

    override fun toString(): String = "${cols}x$rows"
}

/** Which grid of tiles an image is cut into. */
public data class TilingSpec(
    val policy: String,
    val tileSize: Int,
    val grids: List<Grid>,
    val thumbnail: Thumbnail,
    val alpha: Double = 0.1,
    val fit: Fit = Fit.PAD,
)

/** How pixels become numbers: value * rescale, minus mean, divided by std, per RGB channel. */
public data class ImageSpec(
    val mean: List<Double>,
    val std: List<Double>,
    val rescale: Double = 1.0 / 255,
    val resample: Resample = Resample.BICUBIC,
    val background: List<Int> = listOf(0, 0, 0),
    val maxPixels: Long = 100_000_000,
)

/** How the visual tokens of the tiles stand in the prompt. */
public data class ImageTokensSpec(
    val rows: Int,
    val cols: Int,
    val arrangement: Arrangement,
    val thumbnailFirst: Boolean = true,
    val newline: String = "",
)

/** What the checkpoint's chat template does, as data: docs/prompt.md. */
public data class PromptSpec(
    val start: Map<String, String>,
    val between: Map<String, String>,
    val end: Map<String, String>,
    val generation: Map<String, String>,
    val trim: List<String>,
    val image: String,
    val imageToken: String,
    val imagesFirst: Boolean,
    val within: Map<String, String> = emptyMap(),
    val trimLeft: List<String> = emptyList(),
    val trimRight: List<String> = emptyList(),
    val blank: List<String> = emptyList(),
)

/** Where the tokenizer is and which tokens end an answer. */
public data class TokenizerSpec(
    val file: String,
    val imageTokenId: Int,
    val stopTokenIds: List<Int>,
    val addSpecialTokens: Boolean = false,
)

/** Sampling defaults of the checkpoint. */
public data class GenerationSpec(
    val temperature: Double = 0.0,
    val topK: Int = 0,
    val topP: Double = 1.0,
    val minP: Double = 0.0,
    val repetitionPenalty: Double = 1.0,
)

/** A dimension of a tensor: a number, or a name where it varies. */
public sealed interface Dimension {
    public data class Fixed(val size: Int) : Dimension {
        override fun toString(): String = size.toString()
    }

    public data class Named(val name: String) : Dimension {
        override fun toString(): String = name
    }
}

/** One input or output of a stage. */
public data class TensorSpec(val name: String, val type: TensorType, val shape: List<Dimension>) {
    /** Size of one dimension, or null where it varies. */
    public fun size(axis: Int): Int? = (shape[axis] as? Dimension.Fixed)?.size
}

/** One graph of a variant. Stages of one file, engine and options are one session: it is opened once. */
public data class StageSpec(
    val file: String,
    val inputs: List<TensorSpec>,
    val outputs: List<TensorSpec>,
    val externalData: List<String> = emptyList(),
    val kernels: Map<String, Int> = emptyMap(),
    val engine: String = "",
    val engineOptions: Map<String, String> = emptyMap(),
)

/** The decoder's cache: past_key.i, past_value.i of shape [1, kvHeads, capacity, headDim]. */
public data class KvCacheSpec(
    val type: TensorType,
    val protocol: CacheProtocol,
    val layers: Int,
    val kvHeads: Int,
    val headDim: Int,
    val capacity: Int,
    val chunkSize: Int,
    val keysTransposed: Boolean = false,
)

/** The device that a variant's binaries were compiled for. */
public data class DeviceSpec(val soc: String, val socModel: Int, val architecture: Int, val qairt: String)

/** The stages of one compile target. */
public data class VariantSpec(
    val name: String,
    val target: String,
    val precision: String,
    val engine: String,
    val engineOptions: Map<String, String>,
    val visionBatch: Int,
    val stages: Map<String, StageSpec>,
    val kvCache: KvCacheSpec,
    val toolchain: Map<String, String>,
    val device: DeviceSpec? = null,
) {
    /** The graphs of a stage in the order in which they run; empty if there is no such stage. */
    public fun chain(name: String): List<String> {
        if (name in stages) return listOf(name)
        return generateSequence(0) { it + 1 }.map { "$name.$it" }.takeWhile { it in stages }.toList()
    }

    /** The program that runs one graph, and its options. */
    public fun engineOf(stage: String): EngineChoice {
        val spec = stages.getValue(stage)
        return if (spec.engine.isEmpty()) EngineChoice(engine, engineOptions) else EngineChoice(spec.engine, spec.engineOptions)
    }
}

/** An engine by its name, and what it is told. */
public data class EngineChoice(val engine: String, val options: Map<String, String>)

/** One file of the bundle: relative path, size, and SHA-256 in lower-case hexadecimal. */
public data class FileSpec(val path: String, val bytes: Long, val sha256: String)
