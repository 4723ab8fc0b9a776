"""What compiling for the NPU takes, beside the rest of an export: from shapes, and from times measured on two server cores."""

from __future__ import annotations

import math

from pocketvlm.toolchain.backends.base import Needs
from pocketvlm.toolchain.backends.qnn import parts
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.spec import ModelSpec
from pocketvlm.toolchain.weights import expected_parameters

# The compiler's memory: its libraries, and bytes for each parameter of a part.
_COMPILER, _BYTES_A_PARAMETER = 150 << 20, 6.0
# Its time: seconds for each layer of each graph, and for each parameter of a binary.
_SECONDS_A_LAYER, _SECONDS_A_PARAMETER = 0.7, 1.2e-7
# A binary: bytes for each parameter of 8 and of 4 bits, and for what a layer's graph adds.
_BYTES_8, _BYTES_4, _BYTES_A_LAYER = 1.03, 0.6, 40_000


def needs(spec: ModelSpec, recipe: ExportRecipe) -> Needs:
    """Memory of the largest part, and disk and time of all, for one SoC."""
    qnn = recipe.qnn
    counts = {name: math.prod(shape) for name, shape in expected_parameters(spec).items()}

    def total(*prefixes: str) -> int:
        return sum(count for name, count in counts.items() if name.startswith(prefixes))

    ram = disk = seconds = 0.0
    halves: list[tuple[int, int, int, float]] = []
    if "vision" in qnn.stages:
        halves.append((spec.vision.blocks, total("vision.layers.") + total("connector."), 1, _BYTES_8))
    if "decoder" in qnn.stages:
        halves.append((spec.decoder.layers, total("decoder.layers."), 2, _BYTES_4))
        head = counts[f"{spec.decoder.output_projection}.weight"]
        ram, disk, seconds = _BYTES_A_PARAMETER * head, _BYTES_8 * head, _SECONDS_A_PARAMETER * head
    for layers, parameters, graphs, bytes_each in halves:
        longest = max(last - first for first, last in parts.cut(layers, qnn.layers_per_part))
        ram = max(ram, _BYTES_A_PARAMETER * parameters * longest / max(layers, 1))
        disk += bytes_each * parameters + _BYTES_A_LAYER * layers * graphs
        seconds += _SECONDS_A_LAYER * layers * graphs + _SECONDS_A_PARAMETER * parameters
    return Needs(int(ram + _COMPILER), int(disk), seconds)
