"""What the graphs of target `ort-cpu` take on disk and in memory, from shapes alone."""

from __future__ import annotations

import math

from pocketvlm.toolchain.backends.base import Needs
from pocketvlm.toolchain.quantize.scheme import WeightScheme
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.spec import ModelSpec
from pocketvlm.toolchain.weights import expected_parameters

# Graphs and their kernels' names, and 6 KB of them for a layer.
_GRAPHS, _GRAPH_OF_A_LAYER = 200_000, 6_000


def needs(spec: ModelSpec, recipe: ExportRecipe, schemes: frozenset[WeightScheme]) -> Needs:
    """All stages. The opened bundle and its packed weights are in memory while it is verified."""
    counts = {name: math.prod(shape) for name, shape in expected_parameters(spec).items()}
    decoder = sum(count for name, count in counts.items() if name.startswith("decoder.layers."))
    if recipe.precision == "fp32":
        disk = 4.0 * sum(counts.values())
    else:
        block = recipe.decoder_weights.block_size
        floats = sum(counts[name] for name in _vision_floats(spec))
        vision = sum(count for name, count in counts.items() if name.startswith(_VISION))
        rest = sum(counts.values()) - decoder - vision
        disk = decoder * (0.5 + 4.5 / block) + (vision - floats) * 1.02 + 4 * floats + rest * (1 + 5 / block)
        if recipe.prefill_weights == "int8":
            disk += decoder * 1.01
    disk += _GRAPHS + _GRAPH_OF_A_LAYER * (spec.vision.layers + spec.decoder.layers)
    return Needs(ram_bytes=int(2 * disk), disk_bytes=int(disk), schemes=schemes)


def cpu_stages_bytes(spec: ModelSpec, recipe: ExportRecipe) -> int:
    """Patch embedding and embedding table: what stays on the CPU whatever the target."""
    shapes = expected_parameters(spec)
    patches = sum(
        math.prod(shapes[name]) for name in _vision_floats(spec) if not name.startswith(("vision.layers.", "connector."))
    )
    table = math.prod(shapes["decoder.embed.weight"])
    return int(4 * patches + table * (1 + 5 / recipe.decoder_weights.block_size) + _GRAPHS)


_VISION = ("vision.", "connector.")


def _vision_floats(spec: ModelSpec) -> list[str]:
    """Patch embedding, positions and norms, which stay in float32."""
    return [
        name
        for name, shape in expected_parameters(spec).items()
        if name.startswith(_VISION) and (len(shape) != 2 or name == "vision.position")
    ]
