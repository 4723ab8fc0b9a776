"""THE contract between the toolchain and every runtime: what `manifest.json` of a bundle says.

Plain frozen dataclasses; `manifest_reader` reads them strictly (types, ranges, paths), `dump_manifest` writes
canonical JSON. The Kotlin runtime reads the same file; `manifest.schema.json` describes it in JSON Schema.
Section additions raise the minor version; anything that a reader must understand raises the major one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA_MAJOR = 1
SCHEMA_MINOR = 1
MANIFEST_NAME = "manifest.json"
MANIFEST_HASH_NAME = "manifest.json.sha256"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_TILE_SIZE = 4096
MAX_GRIDS = 1000
MAX_GRID_SIDE = 100
# The engine whose graphs are compiled for one device.
NPU_ENGINE = "onnxruntime-qnn"
# Version of its compiler, such as 2.50.40.
QAIRT_VERSION = r"[0-9]{1,4}(\.[0-9]{1,6}){1,3}"
# An image is brought to the size of its grid, in memory, before it is cut.
MAX_GRID_PIXELS = 1 << 25
# Less would overflow float32 when the logits are divided by it.
LEAST_TEMPERATURE = 1e-4

Fit = Literal["pad", "stretch", "crop"]
Thumbnail = Literal["never", "several_tiles", "always"]
Arrangement = Literal["tile_by_tile", "picture_rows"]
Resample = Literal["bicubic", "bilinear", "lanczos"]
CacheProtocol = Literal["in_place", "columns"]


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """Version of the format; docs/bundle.md says what raises which number."""

    major: int
    minor: int


@dataclass(frozen=True, slots=True)
class TilingSpec:
    """Which grid of tiles an image is cut into, as data.

    Attributes:
        policy: name of the rule that picks the grid, from `grid_policies`.
        tile_size: side of a square tile, in pixels.
        grids: candidate grids as (columns, rows).
        thumbnail: whether the whole picture is added as one more tile.
        alpha: tolerance of relaxed aspect ratio matching (BlueLM-V-3B, section 3.2).
        fit: how the image fills the chosen grid: scaled to fit and padded to the centre, stretched, or scaled to
            cover and cropped at the centre.
    """

    policy: str
    tile_size: int
    grids: tuple[tuple[int, int], ...]
    thumbnail: Thumbnail
    alpha: float = 0.1
    fit: Fit = "pad"


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How pixels become numbers: value * rescale, minus mean, divided by std, per RGB channel.

    Attributes:
        background: RGB value, 0 to 255, of padding. (What lies behind transparent pixels is white.)
        max_pixels: larger images are refused before they are decoded.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float = 1 / 255
    resample: Resample = "bicubic"
    background: tuple[int, int, int] = (0, 0, 0)
    max_pixels: int = 100_000_000


@dataclass(frozen=True, slots=True)
class ImageTokensSpec:
    """How the visual tokens of the tiles stand in the prompt.

    Attributes:
        rows, cols: visual tokens per tile.
        arrangement: "tile_by_tile" (each tile's tokens, then the next tile's) or "picture_rows" (the tiles'
            tokens put back into one picture and read row by row, LLaVA-NeXT's arrangement).
        thumbnail_first: whether the thumbnail's tokens precede those of the tiles.
        newline: file with one float32 little-endian embedding [H] that follows every row of the picture
            ("picture_rows" only); empty means none.
    """

    rows: int
    cols: int
    arrangement: Arrangement
    thumbnail_first: bool = True
    newline: str = ""


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """What the checkpoint's chat template does, as data. See docs/prompt.md.

    A *sort* names a message by its role and by the part of it that touches its neighbour: "user" (a text) or
    "user+image" (an image). Where a "+image" key is absent, the key without it holds for both.
    A conversation is start[sort] parts between[sort>sort] parts ... generation[sort].

    Attributes:
        start: text before the first message, by the sort that it begins with.
        between: text between two messages, by "sort that the earlier ends with>sort that the later begins with".
        end: text after the last message, by the sort that it ends with, without a generation prompt.
        generation: the same with the generation prompt.
        trim: roles whose texts are all stripped of white space at both ends.
        image: text that stands for one image; contains `image_token` exactly once.
        image_token: the special token that the visual tokens replace.
        images_first: whether the images of a message move before its texts.
        within: text between two parts of one user message: "text>text", "text>image", "image>text",
            "image>image". An absent key means no text.
        trim_left: where else a text is stripped at its left end: ">user" (first of all), "assistant>user" (role
            before, role of the text), "image>text" (inside a user message).
        trim_right: where else a text is stripped at its right end: "user>" (last of all), "user>assistant",
            "text>image".
        blank: roles whose texts may be empty or white space alone; in the others such a text is an error.
    """

    start: dict[str, str]
    between: dict[str, str]
    end: dict[str, str]
    generation: dict[str, str]
    trim: tuple[str, ...]
    image: str
    image_token: str
    images_first: bool
    within: dict[str, str] = field(default_factory=dict)
    trim_left: tuple[str, ...] = ()
    trim_right: tuple[str, ...] = ()
    blank: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """Where the tokenizer is and which tokens end an answer.

    Attributes:
        file: path of tokenizer.json in the bundle.
        image_token_id: id of the prompt's `image_token`.
        stop_token_ids: an answer ends at any of these; they are no part of it.
        add_special_tokens: whether the tokenizer's own post-processor adds its tokens (say, the beginning of
            sequence) to the rendered prompt: true where the chat template does not write them itself.
    """

    file: str
    image_token_id: int
    stop_token_ids: tuple[int, ...]
    add_special_tokens: bool = False


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """Sampling defaults of the checkpoint's generation_config.json."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a stage. A dimension is a number, or a name when it varies."""

    name: str
    dtype: Literal["float32", "float16", "int8", "uint8", "int32", "int64", "bool"]
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One graph of a variant. Stages of one file, engine and options are one session: it is opened once.

    Attributes:
        external_data: further files that the graph refers to.
        kernels: what it runs, where that is known: kernel -> how often.
        engine, engine_options: where they differ from the variant's. A stage with an engine brings all its options: of the
            variant's none hold.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    external_data: tuple[str, ...] = ()
    kernels: dict[str, int] = field(default_factory=dict)
    engine: str = ""
    engine_options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KvCacheSpec:
    """The decoder's cache. Buffers past_key.<i>, past_value.<i> of shape [1, kv_heads, capacity, head_dim].

    Attributes:
        keys_transposed: keys lie as [1, kv_heads, head_dim, capacity].
        protocol: "in_place": outputs present_key.<i> and present_value.<i> are bound to the same buffers and the
            graph writes the new columns itself; "columns": the graph returns the new columns, the runtime writes
            them.
        capacity: largest number of positions.
        chunk_size: most tokens of one prefill call.
    """

    dtype: Literal["int8", "float32", "float16", "uint8"]
    protocol: CacheProtocol
    layers: int
    kv_heads: int
    head_dim: int
    capacity: int
    chunk_size: int
    keys_transposed: bool = False


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """The device that a variant's binaries were compiled for.

    Attributes:
        soc: its name, as Android's `ro.soc.model` gives it.
        soc_model: Qualcomm's number for it.
        architecture: version of its Hexagon tensor processor.
        qairt: version of Qualcomm's compiler, such as "2.50.40"; the device's runtime must not be older.
    """

    soc: str
    soc_model: int
    architecture: int
    qairt: str


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """The stages of one compile target.

    Attributes:
        stages: patch_embed, vision_encoder, connector, fusion (optional), embed_tokens, prefill, decode, and, where a
            target needs them, prefill_positions and decode_positions (run before prefill and decode) and lm_head (run after
            them on one position). A stage in parts is listed as prefill.0, prefill.1, ...: `chain` puts them in order.
        device: what the binaries need; None: any machine that has the engine, which is then not `NPU_ENGINE`.
    """

    name: str
    target: str
    precision: str
    engine: str
    engine_options: dict[str, str]
    vision_batch: int
    stages: dict[str, StageSpec]
    kv_cache: KvCacheSpec
    toolchain: dict[str, str]
    device: DeviceSpec | None = None

    def chain(self, name: str) -> tuple[str, ...]:
        """The graphs of a stage in the order in which they run; empty if there is no such stage."""
        if name in self.stages:
            return (name,)
        parts: list[str] = []
        while f"{name}.{len(parts)}" in self.stages:
            parts.append(f"{name}.{len(parts)}")
        return tuple(parts)

    def engine_of(self, stage: str) -> tuple[str, dict[str, str]]:
        """Engine and its options for one graph."""
        spec = self.stages[stage]
        return (spec.engine, spec.engine_options) if spec.engine else (self.engine, self.engine_options)

    def session_key(self, stage: str) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        """What makes one graph a session of its own: stages with equal keys share theirs."""
        engine, options = self.engine_of(stage)
        return self.stages[stage].file, engine, tuple(sorted(options.items()))


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What was exported. `spec` holds the toolchain's ModelSpec, for people and for `inspect`."""

    name: str
    architecture: str
    hidden_size: int
    vocab_size: int
    parameters: int
    licence: str
    source: str
    weights_sha256: str
    spec: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FileSpec:
    """One file of the bundle: relative path, size, and SHA-256 in lower-case hexadecimal."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of `manifest.json`."""

    schema: SchemaVersion
    pocketvlm: str
    model: ModelInfo
    tiling: TilingSpec
    image: ImageSpec
    image_tokens: ImageTokensSpec
    prompt: PromptSpec
    tokenizer: TokenizerSpec
    generation: GenerationSpec
    variants: tuple[VariantSpec, ...]
    files: tuple[FileSpec, ...]


def to_json(value: Any) -> Any:
    """Dataclasses -> plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(asdict(value)))


def dump_manifest(manifest: Manifest) -> str:
    """Canonical JSON text: the same manifest always gives the same bytes."""
    return json.dumps(asdict(manifest), indent=1, ensure_ascii=False, sort_keys=False) + "\n"


def manifest_hash(content: bytes) -> str:
    """Text of `manifest.json.sha256` for these bytes of `manifest.json`, in the form that `sha256sum --check` reads."""
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST_NAME}\n"
