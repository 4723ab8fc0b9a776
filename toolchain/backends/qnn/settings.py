"""What a recipe may ask of targets `qnn:*`. Nothing that it says is passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args, get_origin, get_type_hints

from pocketvlm.errors import SettingError
from pocketvlm.toolchain.backends.qnn.half_graph import SMALLEST_BLOCK
from pocketvlm.toolchain.backends.qnn.socs import Soc
from pocketvlm.toolchain.recipe import ExportRecipe, Qnn
from pocketvlm.toolchain.spec import ModelSpec
from pocketvlm.toolchain.weights import expected_parameters

_FAMILY = "qnn:"
# Settings of `qnn` that are about one half of the model.
_OF_A_HALF = {"vision": ("vision_batch", "vision_activations"), "decoder": ("decoder_weights", "attention")}


def check_settings(target: str, soc: Soc, spec: ModelSpec, recipe: ExportRecipe) -> None:
    """Refuse what the target cannot do, and what would have no effect.

    Raises:
        SettingError: naming the setting and what to use instead.
    """
    if recipe.precision == "fp32":
        raise SettingError(
            "precision",
            f"`precision` is fp32, and target {target} has no float32 form",
            "leave it out, or export for ort-cpu alone",
        )
    _check_values(soc, recipe.qnn)
    _check_halves(recipe)
    if all(other.startswith(_FAMILY) for other in recipe.targets):
        for setting, why, instead in _of_the_cpu_alone(spec, recipe):
            key, message = setting.partition(":")[0], f"{setting} is for target ort-cpu: {target} {why}"
            raise SettingError(key, message, f"{instead}, or add ort-cpu to `targets`")
    _check_widths(spec, recipe)


def _check_values(soc: Soc, qnn: Qnn) -> None:
    """Of recipes that no file was read for, too."""
    for name, kind in get_type_hints(Qnn).items():
        value = getattr(qnn, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise SettingError(f"qnn.{name}", f"qnn.{name} is {value!r}", f"take {' or '.join(get_args(kind))}")
    if qnn.vtcm_mb is not None and qnn.vtcm_mb > soc.vtcm_mb:
        raise SettingError(
            "qnn.vtcm_mb",
            f"qnn.vtcm_mb is {qnn.vtcm_mb}, and {soc.name} has {soc.vtcm_mb} MB on chip",
            f"take at most {soc.vtcm_mb}, or leave it out",
        )


def _check_halves(recipe: ExportRecipe) -> None:
    stages, default = recipe.qnn.stages, Qnn()
    for half, names in _OF_A_HALF.items():
        if half in stages:
            continue
        if "ort-cpu" not in recipe.targets:
            raise SettingError(
                "qnn.stages",
                f"qnn.stages {list(stages)} leaves the other half to target ort-cpu, which is not exported",
                "add ort-cpu to `targets`",
            )
        for name in names:
            if getattr(recipe.qnn, name) != getattr(default, name):
                raise SettingError(
                    f"qnn.{name}",
                    f"qnn.{name} is {getattr(recipe.qnn, name)}, and qnn.stages leaves the {half} to target ort-cpu",
                    f"leave it out, or add {half} to qnn.stages",
                )


def _of_the_cpu_alone(spec: ModelSpec, recipe: ExportRecipe) -> Iterator[tuple[str, str, str]]:
    """Settings that were changed and that no NPU heeds: the setting, what the NPU does, and what to do."""
    default = ExportRecipe()
    if recipe.kv_cache.dtype != default.kv_cache.dtype:
        yield f"kv_cache.dtype: {recipe.kv_cache.dtype}", "keeps its cache in 8 bits", "leave it out"
    if recipe.kv_cache.granularity not in (None, "per_tensor"):
        told = "stores a layer's keys with one scale, and its values with another"
        yield f"kv_cache.granularity: {recipe.kv_cache.granularity}", told, "leave it out"
    if recipe.prefill_weights != default.prefill_weights:
        told = "computes chunks and single positions with the same weights"
        yield f"prefill_weights: {recipe.prefill_weights}", told, "leave it out"
    # A tied table stays on the CPU and does take them.
    if recipe.lm_head_bits != default.lm_head_bits and not spec.decoder.tie_embeddings:
        yield f"lm_head_bits: {recipe.lm_head_bits}", "has an output projection of 8 bits", "leave it out"
    if recipe.vision_batch != default.vision_batch:
        yield f"vision_batch: {recipe.vision_batch}", "takes qnn.vision_batch tiles at once", "set qnn.vision_batch"
    if recipe.fixed_vision_batch:
        yield "fixed_vision_batch: true", "is compiled for exactly qnn.vision_batch tiles in any case", "leave it out"
    if recipe.ort_cpu.arm_kernels != default.ort_cpu.arm_kernels:
        told = "leaves to the CPU what is the same with either"
        yield f"ort_cpu.arm_kernels: {recipe.ort_cpu.arm_kernels}", told, "leave it out"


def _check_widths(spec: ModelSpec, recipe: ExportRecipe) -> None:
    """Blocks of weights must fill the rows of every matrix."""
    qnn, block = recipe.qnn, recipe.decoder_weights.block_size
    if "vision" in qnn.stages and qnn.vision_activations == "float16":
        for name, width in _widths(spec, "vision.layers.", "connector."):
            if width % SMALLEST_BLOCK:
                raise SettingError(
                    "qnn.vision_activations",
                    f"qnn.vision_activations: float16 takes widths divisible by {SMALLEST_BLOCK}; {name} has {width} inputs",
                    "set qnn.vision_activations: int16",
                )
    if "decoder" in qnn.stages and qnn.decoder_weights == "lpbq":
        for name, width in _widths(spec, "decoder.layers."):
            # The compiler takes a last block that is cut off, and the NPU then computes something else.
            if width > block and width % block:
                raise SettingError(
                    "decoder_weights.block_size",
                    f"decoder_weights.block_size {block} does not divide the {width} inputs of {name}",
                    "take one that does, or set qnn.decoder_weights: per_channel",
                )


def _widths(spec: ModelSpec, *prefixes: str) -> Iterator[tuple[str, int]]:
    """Linear layers of components, and their numbers of inputs."""
    for name, shape in expected_parameters(spec).items():
        if name.startswith(prefixes) and len(shape) == 2:
            yield name.removesuffix(".weight"), shape[1]
