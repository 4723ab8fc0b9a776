"""What an export makes of a checkpoint: a frozen recipe, read strictly from YAML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pocketvlm.errors import RecipeError
from pocketvlm.runtime.grid_policies import GRID_POLICIES
from pocketvlm.runtime.manifest import MAX_GRID_SIDE, MAX_GRIDS, Thumbnail, TilingSpec
from pocketvlm.runtime.strict_json import decode
from pocketvlm.toolchain.backends import BACKENDS, family

MAX_RECIPE_BYTES = 1024 * 1024
MAX_CONTEXT = 1 << 24
MAX_CHUNK = 4096
# What calibration.text says for text that the model writes.
GENERATED = "generated"

Precision = Literal["paper", "fp32"]


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """How the decoder's linear weights become INT4.

    Attributes:
        method: "rtn" (round to nearest), "gptq" (arXiv 2210.17323), or "distill" (GPTQ, then all of it tuned together
            against the float model). Each is better than the one before, and takes longer. "auto" is "distill" for models
            whose parameters take at most 2 GiB in float32, and "gptq" for larger ones.
        block_size: consecutive weights that share a scale: a power of two, 16 to 256.
        symmetric: no zero points.
    """

    method: Literal["auto", "rtn", "gptq", "distill"] = "auto"
    block_size: int = 32
    symmetric: bool = False


@dataclass(frozen=True, slots=True)
class KvCache:
    """How keys and values are stored.

    Attributes:
        granularity: what has a scale of its own; None takes the finest that the target knows.
    """

    dtype: Literal["int8", "float32"] = "int8"
    granularity: Literal["per_channel", "per_tensor"] | None = None


@dataclass(frozen=True, slots=True)
class OrtCpu:
    """What target `ort-cpu` does beside the rest of the recipe.

    Attributes:
        arm_kernels: on ARM, the kernels whose numbers are nearest to those of other processors ("faithful"), or Arm's own,
            KleidiAI ("fastest"), with which a phone may choose another token than the computer that judged the bundle.
    """

    arm_kernels: Literal["faithful", "fastest"] = "faithful"


@dataclass(frozen=True, slots=True)
class Qnn:
    """What targets `qnn:<SoC>` do beside the rest of the recipe.

    Attributes:
        stages: what runs on the NPU; the other half is that of target ort-cpu.
        vision_batch: tiles that the NPU takes at once.
        vision_activations: 16-bit integers, whose ranges are calibrated, or float16, as the paper has it.
        decoder_weights: INT4 in blocks of `decoder_weights.block_size` with 4-bit scales on one float scale per channel
            ("lpbq"), or with that scale alone ("per_channel").
        attention: whether the new keys and values join those of the cache before the products or after them; the numbers
            are the same.
        layers_per_part: most transformer layers that are compiled at once, for which memory decides.
        memory_gb: the compiler is stopped when it takes more.
        vtcm_mb: on-chip memory to use; None takes what the SoC has.
        proxy: put the quantized graphs into the bundle, too, as a variant "qnn-cpu", with which a computer answers as the NPU
            will, slowly.
        weight_sharing: prefill and decode in one binary, with the weights once. Without it the binaries run on an emulation of
            the NPU, too.
        emulate: which graphs are run on the emulation after compiling, against the same graph on the CPU: "small" ones, of
            at most a few billion products, "all", or "none".
    """

    stages: tuple[Literal["vision", "decoder"], ...] = ("vision", "decoder")
    vision_batch: int = 1
    vision_activations: Literal["int16", "float16"] = "int16"
    decoder_weights: Literal["lpbq", "per_channel"] = "lpbq"
    attention: Literal["joined", "split"] = "joined"
    layers_per_part: int = 8
    memory_gb: float = 16.0
    vtcm_mb: int | None = None
    proxy: bool = False
    weight_sharing: bool = True
    emulate: Literal["none", "small", "all"] = "small"


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the model sees while ranges and GPTQ's statistics are taken.

    Attributes:
        images: image files, or folders of them.
        prompts: questions that are asked about each image; or a text file with one question a line.
        text: a text file for the language model alone, or "generated": what the model itself writes.
        tokens: how many tokens of `text` are used at most.
        any_script: take `prompts` and `text` also where the model's vocabulary does not seem to be made for their script.
    """

    images: tuple[str, ...] = ()
    prompts: str | tuple[str, ...] = ()
    text: str | None = None
    tokens: int = 8192
    any_script: bool = False


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Below these the export fails.

    Attributes:
        stage_cosine: least cosine similarity of any stage's output with the eager model's.
        logits_kl: largest mean Kullback-Leibler divergence, in nats, from the eager model's next-token distribution.
        top1: least share of positions at which both prefer the same token.
        task: least share of the task's questions that the bundle answers right.
    """

    stage_cosine: float = 0.99
    logits_kl: float = 0.3
    top1: float = 0.8
    task: float = 0.0


@dataclass(frozen=True, slots=True)
class TilingOverride:
    """Parts of the checkpoint's tiling to replace; None leaves one as it is."""

    policy: str | None = None
    grids: tuple[tuple[int, int], ...] | None = None
    thumbnail: Thumbnail | None = None
    alpha: float | None = None

    def apply(self, tiling: TilingSpec) -> TilingSpec:
        """`tiling` with the given parts replaced."""
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(tiling, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True)
class ExportRecipe:
    """One export. Every field has a default, so `ExportRecipe()` is the plain export.

    Attributes:
        targets: compile targets, each of which becomes a variant of the bundle.
        precision: "paper" (BlueLM-V-3B, section 3.4: vision INT8, decoder INT4, cache INT8) or "fp32", which leaves
            everything unquantized, the cache included, whatever the fields below say.
        max_seq_len: capacity of the KV cache; None takes the target's default for the model.
        chunk_size: most tokens of one prefill call.
        vision_batch: tiles that the vision encoder takes at once.
        fixed_vision_batch: compile the vision stages for exactly that batch instead of any up to it.
        decoder_weights, lm_head_bits, embedding_bits, kv_cache: see the paper scheme.
        prefill_weights: "int8" adds a second form of the decoder's matrices, for chunks: the same values, rounded to INT8
            per output. Prefill becomes faster, the bundle and the memory larger.
        ort_cpu: for ONNX Runtime on the CPU alone.
        qnn: for Qualcomm's NPU alone.
        task: file of questions with known answers, see `load_task`; the report then tells how many come out right.

    Raises:
        RecipeError: a value out of range (on construction).
    """

    targets: tuple[str, ...] = ("ort-cpu",)
    precision: Precision = "paper"
    max_seq_len: int | None = None
    chunk_size: int = 128
    vision_batch: int = 4
    fixed_vision_batch: bool = False
    decoder_weights: DecoderWeights = field(default_factory=DecoderWeights)
    prefill_weights: Literal["int4", "int8"] = "int4"
    lm_head_bits: Literal[8, 4] = 8
    embedding_bits: Literal[8, 4] = 8
    kv_cache: KvCache = field(default_factory=KvCache)
    ort_cpu: OrtCpu = field(default_factory=OrtCpu)
    qnn: Qnn = field(default_factory=Qnn)
    calibration: Calibration = field(default_factory=Calibration)
    thresholds: Thresholds = field(default_factory=Thresholds)
    task: str | None = None
    tiling: TilingOverride | None = None

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise RecipeError(f"recipe: targets {list(self.targets)} must be at least one, each once")
        _within("chunk_size", self.chunk_size, 1, MAX_CHUNK)
        _within("vision_batch", self.vision_batch, 1, 64)
        _within("calibration.tokens", self.calibration.tokens, 1, 1 << 24)
        _within("thresholds.stage_cosine", self.thresholds.stage_cosine, -1.0, 1.0)
        _within("thresholds.logits_kl", self.thresholds.logits_kl, 0.0, 100.0)
        _within("thresholds.top1", self.thresholds.top1, 0.0, 1.0)
        _within("thresholds.task", self.thresholds.task, 0.0, 1.0)
        if self.thresholds.task and self.task is None:
            raise RecipeError("recipe: thresholds.task needs a task", "name a file of questions under task")
        if self.max_seq_len is not None:
            _within("max_seq_len", self.max_seq_len, 1, MAX_CONTEXT)
        block = self.decoder_weights.block_size
        if block not in (16, 32, 64, 128, 256):
            raise RecipeError(f"recipe: decoder_weights.block_size is {block}", "take 16, 32, 64, 128 or 256")
        if self.tiling is not None:
            self._check_tiling(self.tiling)
        self._check_qnn(self.qnn)

    @staticmethod
    def _check_qnn(qnn: Qnn) -> None:
        if not qnn.stages or len(set(qnn.stages)) != len(qnn.stages):
            raise RecipeError(
                f"recipe: qnn.stages {list(qnn.stages)} must be vision, decoder or both", "leave ort-cpu for none"
            )
        _within("qnn.vision_batch", qnn.vision_batch, 1, 64)
        _within("qnn.layers_per_part", qnn.layers_per_part, 1, 512)
        _within("qnn.memory_gb", qnn.memory_gb, 0.5, 4096)
        if qnn.vtcm_mb is not None:
            _within("qnn.vtcm_mb", qnn.vtcm_mb, 1, 64)

    @staticmethod
    def _check_tiling(tiling: TilingOverride) -> None:
        if tiling.policy is not None and tiling.policy not in GRID_POLICIES:
            raise RecipeError(f"recipe: unknown tiling.policy {tiling.policy!r}", f"there are {', '.join(GRID_POLICIES)}")
        if tiling.grids is not None:
            if not 1 <= len(tiling.grids) <= MAX_GRIDS or len(set(tiling.grids)) != len(tiling.grids):
                raise RecipeError(f"recipe: tiling.grids must be 1 to {MAX_GRIDS} grids, each once")
            for grid in tiling.grids:
                for side in grid:
                    _within("a side of tiling.grids", side, 1, MAX_GRID_SIDE)
        if tiling.alpha is not None:
            _within("tiling.alpha", tiling.alpha, 0.0, 1.0)


def load_recipe(path: Path, targets: tuple[str, ...] = ("ort-cpu",)) -> ExportRecipe:
    """Read a recipe file. Paths in it are taken relative to it.

    Args:
        targets: for a file that names none.

    Raises:
        RecipeError: the file is missing, too large or not YAML, has a repeated or unknown key (the hint names the nearest
            known one), an unknown target, or a value of the wrong type or out of range.
    """
    raw = _read_yaml(path)
    try:
        recipe: ExportRecipe = decode(ExportRecipe, raw, str(path), RecipeError)
        if "targets" not in raw:
            recipe = replace(recipe, targets=targets)
        for target in recipe.targets:
            BACKENDS.require(target, RecipeError)
    except RecipeError as error:
        message = error.message.removeprefix("recipe: ")
        message = message if message.startswith(str(path)) else f"{path}: {message}"
        raise RecipeError(message, error.hint) from None
    return with_paths(recipe, lambda name: str(path.parent / name))


def idle_settings(recipe: ExportRecipe) -> list[str]:
    """Settings without effect: those of `qnn` that were changed although no target is of that family."""
    if any(family(target) == "qnn" for target in recipe.targets):
        return []
    default = Qnn()
    return [f"qnn.{item.name}" for item in fields(Qnn) if getattr(recipe.qnn, item.name) != getattr(default, item.name)]


def with_paths(recipe: ExportRecipe, change: Callable[[str], str]) -> ExportRecipe:
    """The recipe with every setting that names a file or folder replaced by what `change` makes of it."""
    prompts, text = recipe.calibration.prompts, recipe.calibration.text
    calibration = replace(
        recipe.calibration,
        images=tuple(change(image) for image in recipe.calibration.images),
        prompts=change(prompts) if isinstance(prompts, str) else prompts,
        text=text if text is None or text == GENERATED else change(text),
    )
    return replace(recipe, calibration=calibration, task=None if recipe.task is None else change(recipe.task))


def _read_yaml(path: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if path.exists() and not path.is_file():
        raise RecipeError(f"{path}: not a file", "give a recipe such as those in export_configs/")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_RECIPE_BYTES + 1)
    except OSError as error:
        hint = "give a recipe such as those in export_configs/"
        raise RecipeError(f"{path}: cannot be read: {error.strerror}", hint) from error
    if len(content) > MAX_RECIPE_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes", "no recipe is that long")
    reader = YAML(typ="safe", pure=True)
    reader.allow_duplicate_keys = False
    try:
        value = reader.load(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8 text", "save it as UTF-8") from None
    except (YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        what = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise RecipeError(f"{where}: not valid YAML: {what}", "compare it with those in export_configs/") from error
    return {} if value is None else value


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RecipeError(f"recipe: {name} is {value}, not between {low} and {high}")
