"""What compiling for the NPU takes, beside the rest of an export: from shapes, and from times measured on two server cores."""

from __future__ import annotations

import math

from pocketvlm.toolchain.backends import ort_cpu, ort_needs
from pocketvlm.toolchain.backends.base import Needs
from pocketvlm.toolchain.backends.qnn import parts
from pocketvlm.toolchain.backends.qnn.graphs import SMALL_PRODUCTS, scheme_of
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.spec import ModelSpec
from pocketvlm.toolchain.verify import SAMPLES, STEPS
from pocketvlm.toolchain.weights import expected_parameters

# The compiler's memory: its libraries, and bytes for each parameter of a part.
_COMPILER, _BYTES_A_PARAMETER = 150 << 20, 6.0
# Its time: seconds for each layer of each graph, and for each parameter of a binary.
_SECONDS_A_LAYER, _SECONDS_A_PARAMETER = 0.7, 2.5e-7
# A binary: bytes for each parameter of 8 and of 4 bits, and for what a layer's graph adds.
_BYTES_8, _BYTES_4, _BYTES_A_LAYER = 1.03, 0.6, 40_000
# Verification on the CPU: bytes for each parameter of the decoder's layers and of the output projection, in its own form of the
# graphs, and seconds for each of both in every run.
_CPU_4, _CPU_HEAD, _SECONDS_A_RUN = 0.63, 4.0, 1e-9
# Products that the emulation does in a second.
_EMULATED = 7e7


def needs(spec: ModelSpec, recipe: ExportRecipe) -> Needs:
    """Memory of the largest part or of the graphs on the CPU, disk and time of all, for one SoC."""
    qnn = recipe.qnn
    counts = {name: math.prod(shape) for name, shape in expected_parameters(spec).items()}

    def total(*prefixes: str) -> int:
        return sum(count for name, count in counts.items() if name.startswith(prefixes))

    ram = disk = seconds = on_cpu = 0.0
    vision, decoder = total("vision.layers.") + total("connector."), total("decoder.layers.")
    # Layers, parameters, bytes of each, and positions in one call of each graph.
    halves: list[tuple[int, int, float, tuple[int, ...]]] = []
    if "vision" in qnn.stages:
        halves.append((spec.vision.blocks, vision, _BYTES_8, (spec.vision.sequence_length * qnn.vision_batch,)))
    if "decoder" in qnn.stages:
        halves.append((spec.decoder.layers, decoder, _BYTES_4, (recipe.chunk_size, 1)))
        head = counts[f"{spec.decoder.output_projection}.weight"]
        ram, disk, seconds = _BYTES_A_PARAMETER * head, _BYTES_8 * head, _SECONDS_A_PARAMETER * head
        seconds += _SECONDS_A_RUN * (decoder + head) * (SAMPLES + 2) * STEPS
        on_cpu = _CPU_4 * decoder + _CPU_HEAD * head
    for layers, parameters, bytes_each, calls in halves:
        longest = max(last - first for first, last in parts.cut(layers, qnn.layers_per_part))
        ram = max(ram, _BYTES_A_PARAMETER * parameters * longest / max(layers, 1))
        disk += bytes_each * parameters + _BYTES_A_LAYER * layers * len(calls)
        seconds += _SECONDS_A_LAYER * layers * len(calls) + _SECONDS_A_PARAMETER * parameters
        if qnn.emulate != "none":
            whole = [parameters * positions for positions in calls]
            small = [products for products in whole if products * longest / max(layers, 1) <= SMALL_PRODUCTS]
            large = [
                products if qnn.emulate == "all" else products / max(layers, 1) for products in whole if products not in small
            ]
            seconds += sum(small + large) / _EMULATED
    schemes = frozenset({scheme_of(recipe)}) if "decoder" in qnn.stages else frozenset()
    # Mapped into memory, where the graphs are verified before they are compiled.
    ram = max(ram + _COMPILER, disk + on_cpu)
    # The graphs in the folder of what is kept hold what the binaries hold.
    disk = 2 * disk + on_cpu
    if ort_cpu.TARGET not in recipe.targets:
        disk += ort_needs.cpu_stages_bytes(spec, recipe)
    return Needs(int(ram), int(disk), seconds, schemes)
