"""What an export will need, told before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pocketvlm.runtime.tiling import TilePlan
from pocketvlm.toolchain.backends.base import Needs
from pocketvlm.toolchain.quality import SAMPLES, STEPS
from pocketvlm.toolchain.quantize import distill
from pocketvlm.toolchain.quantize.calibration_text import TEXT_LENGTH
from pocketvlm.toolchain.quantize.decoder import Method
from pocketvlm.toolchain.recipe import GENERATED, ExportRecipe
from pocketvlm.toolchain.spec import DecoderSpec, ModelSpec
from pocketvlm.toolchain.weights import expected_parameters

# Two busy laptop cores, in float32 products: operations per second, and seconds to read a parameter and make it float32.
_FLOPS = 1e11
_READ = 2e-9
# Seconds to move a weight one step while all are tuned, for which memory decides.
_MOVE = 8e-9
_LIBRARIES = 700 << 20
_KEPT_LIMIT = 2 << 30
# Report and manifest: bytes for each variant, one of which may be a proxy.
_TEXTS = 50_000
# Files fill whole blocks of the disk, and folders are files, too; compilers leave a log.
_SLACK = 1.03


@dataclass(frozen=True, slots=True)
class Estimate:
    """Peak memory, room on disk and duration of an export.

    Attributes:
        keep_weights: whether all parameters are held in memory in float32.
        method: how the decoder's matrices become INT4; what "auto" comes to.
    """

    ram_bytes: int
    disk_bytes: int
    seconds: float
    keep_weights: bool
    method: Method


def estimate(
    spec: ModelSpec,
    recipe: ExportRecipe,
    planned: Sequence[TilePlan],
    prompts: int,
    tokenizer_bytes: int,
    needs: Sequence[Needs],
) -> Estimate:
    """Estimate an export from the shapes alone. Questions of a task are not counted.

    Args:
        planned: how the images of the calibration are cut.
        prompts: number of questions about them.
        tokenizer_bytes: size of tokenizer.json, which is copied.
        needs: of each target. They are lowered one after the other; what they write adds up.
    """
    shapes = expected_parameters(spec)
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    decoder = sum(count for name, count in counts.items() if name.startswith("decoder.layers."))
    vision = sum(count for name, count in counts.items() if name.startswith(("vision.", "connector.")))
    total, largest = sum(counts.values()), max(counts.values())
    method = _method(recipe, total)
    keep = 4 * total <= _KEPT_LIMIT or method == "distill"
    gptq = method in ("gptq", "distill")
    # Each scheme is worked out by itself, and its codes are held.
    schemes = len({scheme for item in needs for scheme in item.schemes}) if gptq else 0
    codes = schemes * decoder * (1 + 5 / recipe.decoder_weights.block_size)
    hessian = 3 * 4 * spec.decoder.intermediate_size**2 if gptq else 0
    activations = recipe.calibration.tokens * spec.decoder.hidden_size * 4 * 3
    ram = _LIBRARIES + (4 * total if keep else 0) + 3 * 4 * largest + codes + hessian + activations
    ram += max(item.ram_bytes for item in needs)
    # What is kept for the next export stands on disk until this one has succeeded.
    shared = dict(pair for item in needs for pair in item.shared_disk)
    disk = sum(item.disk_bytes for item in needs) + sum(shared.values()) + codes * (2 if method == "distill" else 1)
    disk = _SLACK * (tokenizer_bytes + _TEXTS * (len(needs) + 1) + disk)
    if method == "distill":
        ram += distill.BYTES_A_WEIGHT * decoder + _window_bytes(spec.decoder)
    images = len(planned)
    positions = sum(plan.image_tokens for plan in planned) / images
    seen = 0 if recipe.precision == "fp32" else max(images, prompts)
    calibrated = seen * positions + (recipe.calibration.tokens if seen else 0)
    # GPTQ sees each layer's inputs four times and its output once more.
    # Verification: both sides answer every sample, and the first one's prompt goes through the decoder alone, too.
    tokens = calibrated * (1 + 5 * schemes) + 2 * (SAMPLES + 1) * positions
    flops = 2.0 * decoder * tokens
    encoded = sum(plan.encoded_tiles for plan in planned)
    flops += 2.0 * vision * spec.vision.sequence_length * encoded * (1 + SAMPLES / images)
    flops += schemes * sum(_gptq_flops(shape) for name, shape in shapes.items() if _is_matrix(name, shape))
    if method == "distill":
        flops += schemes * _distillation_flops(decoder, spec.decoder)
    if recipe.calibration.text == GENERATED and seen:
        flops += 2.0 * (decoder + spec.decoder.vocab_size * spec.decoder.hidden_size) * recipe.calibration.tokens
    reads = 0 if keep else seen + math.ceil(recipe.calibration.tokens / TEXT_LENGTH) + SAMPLES * (STEPS + 1)
    seconds = 20 + flops / _FLOPS + 2e-8 * total + reads * _READ * decoder + sum(item.seconds for item in needs)
    return Estimate(int(ram), int(disk), seconds, keep, method)


def _method(recipe: ExportRecipe, parameters: int) -> Method:
    if recipe.precision == "fp32":
        return "rtn"
    if recipe.decoder_weights.method != "auto":
        return recipe.decoder_weights.method
    return "distill" if 4 * parameters <= _KEPT_LIMIT else "gptq"


def _window_bytes(decoder: DecoderSpec) -> float:
    """What autograd keeps of one window, and some copies of its logits."""
    layer = 10 * decoder.hidden_size + 5 * decoder.intermediate_size
    return 4.0 * distill.WINDOW * (decoder.layers * layer + 5 * decoder.vocab_size)


def _distillation_flops(parameters: int, decoder: DecoderSpec) -> float:
    """Forward and twice that backward, the float decoder's forward, its head and the tuned one's; and moving every weight."""
    rates = distill.Rates()
    positions = rates.steps * distill.WINDOWS_A_STEP * distill.WINDOW
    head = decoder.vocab_size * decoder.hidden_size
    return positions * (8.0 * parameters + 6.0 * head) + rates.steps * _MOVE * _FLOPS * parameters


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return name.startswith("decoder.layers.") and len(shape) == 2


def _gptq_flops(shape: tuple[int, ...]) -> float:
    rows, columns = shape
    return 2.0 * columns**3 + 2.0 * rows * columns**2
