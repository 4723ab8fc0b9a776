"""What the graphs of target `ort-cpu` take on disk and in memory, from shapes alone."""

from __future__ import annotations

import math

from pocketvlm.toolchain.backends.base import Needs
from pocketvlm.toolchain.backends.onnx_graph import stored_bytes
from pocketvlm.toolchain.quantize.scheme import WeightScheme
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.spec import ModelSpec
from pocketvlm.toolchain.weights import expected_parameters

# Graphs with the numbers of their kernels: what they begin with, and what a layer adds.
_GRAPHS, _GRAPH_OF_A_LAYER = 50_000, 16_000


def needs(spec: ModelSpec, recipe: ExportRecipe, schemes: frozenset[WeightScheme]) -> Needs:
    """All stages. The opened bundle and its packed weights are in memory while it is verified."""
    floats = set(_vision_floats(spec))
    disk = _GRAPHS + _GRAPH_OF_A_LAYER * (spec.vision.layers + spec.decoder.layers)
    for name, shape in expected_parameters(spec).items():
        count = math.prod(shape)
        if recipe.precision == "fp32" or name in floats or len(shape) != 2:
            disk += stored_bytes(4 * count)
        elif name.startswith(_VISION):
            disk += stored_bytes(count) + stored_bytes(4 * shape[0])
        elif name.startswith("decoder.layers."):
            disk += _blocks_bytes(shape, 4, recipe)
            if recipe.prefill_weights == "int8":
                disk += stored_bytes(count) + stored_bytes(4 * shape[0])
        else:
            disk += _blocks_bytes(shape, 8, recipe)
    return Needs(ram_bytes=2 * disk, disk_bytes=disk, schemes=schemes)


def cpu_stages_bytes(spec: ModelSpec, recipe: ExportRecipe) -> int:
    """Patch embedding and embedding table: what stays on the CPU whatever the target."""
    shapes = expected_parameters(spec)
    patches = sum(
        stored_bytes(4 * math.prod(shapes[name]))
        for name in _vision_floats(spec)
        if not name.startswith(("vision.layers.", "connector."))
    )
    return patches + _blocks_bytes(shapes["decoder.embed.weight"], 8, recipe) + _GRAPHS


def _blocks_bytes(shape: tuple[int, ...], bits: int, recipe: ExportRecipe) -> int:
    """A matrix in blocks, with the scales and zero points of each."""
    outputs, inputs = shape
    block = recipe.decoder_weights.block_size
    blocks = math.ceil(inputs / block)
    codes, scales, zeros = outputs * blocks * block * bits / 8, 4 * outputs * blocks, outputs * math.ceil(blocks * bits / 8)
    return stored_bytes(codes) + stored_bytes(scales) + stored_bytes(zeros)


_VISION = ("vision.", "connector.")


def _vision_floats(spec: ModelSpec) -> list[str]:
    """Patch embedding, positions and norms, which stay in float32."""
    return [
        name
        for name, shape in expected_parameters(spec).items()
        if name.startswith(_VISION) and (len(shape) != 2 or name == "vision.position")
    ]
