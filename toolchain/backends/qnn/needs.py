"""What compiling for the NPU takes, beside the rest of an export: from shapes, and from what two server cores took."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pocketvlm.toolchain.backends import ort_cpu, ort_needs
from pocketvlm.toolchain.backends.base import Needs
from pocketvlm.toolchain.backends.onnx_graph import stored_bytes
from pocketvlm.toolchain.backends.qnn import parts
from pocketvlm.toolchain.backends.qnn.graphs import SMALL_PRODUCTS, scheme_of
from pocketvlm.toolchain.backends.qnn.half_graph import SMALLEST_BLOCK
from pocketvlm.toolchain.quality import SAMPLES, STEPS
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.spec import ModelSpec
from pocketvlm.toolchain.weights import expected_parameters

# The compiler's memory: its libraries, and bytes for each parameter of a part.
_COMPILER, _BYTES_A_PARAMETER = 150 << 20, 6.0
# Its time: seconds for each layer of each graph, and for each parameter of a binary.
_SECONDS_A_LAYER, _SECONDS_A_PARAMETER = 0.7, 2.5e-7
# A binary: bytes for each parameter of 8 bits, of 8 bits with float16 activations and of 4 bits, and for what a layer's graph,
# the connector or the output projection adds.
_BYTES_8, _BYTES_HALF, _BYTES_4, _BYTES_A_LAYER = 1.03, 1.25, 0.6, 100_000
# A graph before it is compiled, and the form for the CPU: bytes for each layer, beside its weights.
_GRAPH_OF_A_LAYER, _CPU_GRAPH_OF_A_LAYER = 45_000, 35_000
# Seconds for each parameter of decoder and output projection in every run while the graphs are verified on the CPU.
_SECONDS_A_RUN = 1e-9
# Products that the emulation does in a second.
_EMULATED = 7e7
# What MatMulNBits gets where a row has one scale.
_CPU_BLOCK = 32


def needs(spec: ModelSpec, recipe: ExportRecipe, capacity: int) -> Needs:
    """Memory of the largest part or of the graphs on the CPU, disk and time of all, for one SoC."""
    qnn = recipe.qnn
    counts = {name: math.prod(shape) for name, shape in expected_parameters(spec).items()}

    def total(*prefixes: str) -> int:
        return sum(count for name, count in counts.items() if name.startswith(prefixes))

    ram = disk = seconds = 0.0
    vision, decoder = total("vision.layers.") + total("connector."), total("decoder.layers.")
    # Layers, parameters, bytes of each, and positions in one call of each graph.
    halves: list[tuple[int, int, float, tuple[int, ...]]] = []
    if "vision" in qnn.stages:
        each = _BYTES_8 if qnn.vision_activations == "int16" else _BYTES_HALF
        halves.append((spec.vision.blocks, vision, each, (spec.vision.sequence_length * qnn.vision_batch,)))
    if "decoder" in qnn.stages:
        halves.append((spec.decoder.layers, decoder, _BYTES_4, (recipe.chunk_size, 1)))
        head = counts[f"{spec.decoder.output_projection}.weight"]
        ram, disk, seconds = _BYTES_A_PARAMETER * head, _BYTES_8 * head + _BYTES_A_LAYER, _SECONDS_A_PARAMETER * head
        seconds += _SECONDS_A_RUN * (decoder + head) * (SAMPLES + 2) * STEPS
    for layers, parameters, bytes_each, calls in halves:
        longest = max(last - first for first, last in parts.cut(layers, qnn.layers_per_part))
        ram = max(ram, _BYTES_A_PARAMETER * parameters * longest / max(layers, 1))
        copies = 1 if qnn.weight_sharing else len(calls)
        # One more for the connector.
        disk += copies * bytes_each * parameters + _BYTES_A_LAYER * (layers * len(calls) + 1)
        seconds += _SECONDS_A_LAYER * layers * len(calls) + _SECONDS_A_PARAMETER * parameters
        if qnn.emulate != "none":
            whole = [parameters * positions for positions in calls]
            small = [products for products in whole if products * longest / max(layers, 1) <= SMALL_PRODUCTS]
            large = [
                products if qnn.emulate == "all" else products / max(layers, 1) for products in whole if products not in small
            ]
            seconds += sum(small + large) / _EMULATED
    schemes = frozenset({scheme_of(recipe)}) if "decoder" in qnn.stages else frozenset()
    shared = dict(_shared_disk(spec, recipe, capacity))
    # Mapped into memory, where the graphs are verified before they are compiled.
    ram = max(ram + _COMPILER, sum(shared.values()))
    return Needs(int(ram), int(disk), frozenset(shared.items()), seconds, schemes)


def _shared_disk(spec: ModelSpec, recipe: ExportRecipe, capacity: int) -> Iterator[tuple[str, int]]:
    """What all SoCs of an export share: graphs before they are compiled, which stay until it has succeeded.

    Files of the bundle that are links to these are not counted again.
    """
    qnn, decoder = recipe.qnn, spec.decoder
    shapes = expected_parameters(spec)
    chunk = min(recipe.chunk_size, capacity)
    if "vision" in qnn.stages:
        block = SMALLEST_BLOCK if qnn.vision_activations == "float16" else None
        yield (
            "vision graphs",
            _GRAPH_OF_A_LAYER * (spec.vision.blocks + 1)
            + sum(
                _int8_bytes(shape, block) if len(shape) == 2 else stored_bytes(2 * math.prod(shape))
                for name, shape in shapes.items()
                if name.startswith(("vision.", "connector."))
            ),
        )
    if "decoder" in qnn.stages:
        layers = {name: shape for name, shape in shapes.items() if name.startswith("decoder.layers.")}
        bounds = parts.cut(decoder.layers, qnn.layers_per_part)
        # The causal mask, once in each part.
        masks = len(bounds) * stored_bytes(2 * chunk * (decoder.heads // decoder.kv_heads) * (capacity + chunk))
        head = shapes[f"{decoder.output_projection}.weight"]
        block = 0 if qnn.decoder_weights == "per_channel" else recipe.decoder_weights.block_size
        graphs = sum(_int4_bytes(shape, block) for shape in layers.values()) + masks + _int8_bytes(head, None)
        yield "decoder graphs", graphs + _GRAPH_OF_A_LAYER * (2 * decoder.layers + 1)
        packed = sum(_packed_bytes(shape, block or _CPU_BLOCK) for shape in layers.values()) + masks
        packed += stored_bytes(4 * math.prod(head)) + _CPU_GRAPH_OF_A_LAYER * (2 * decoder.layers + 1)
        yield "decoder graphs for the CPU", packed
        yield "positions", 2 * stored_bytes(4 * capacity * decoder.head_dim) + 2 * stored_bytes(8 * (capacity + chunk))
    if qnn.emulate != "none":
        # Inputs and outputs of one graph at a time, in files between two processes.
        yield "emulated", max(_activations(spec, recipe, capacity, chunk))
    if ort_cpu.TARGET not in recipe.targets:
        yield "stages on the CPU", ort_needs.cpu_stages_bytes(spec, recipe)


def _activations(spec: ModelSpec, recipe: ExportRecipe, capacity: int, chunk: int) -> Iterator[int]:
    """Bytes of what goes into the largest graphs and comes out of them."""
    qnn, vision, decoder = recipe.qnn, spec.vision, spec.decoder
    if "vision" in qnn.stages:
        yield 4 * qnn.vision_batch * vision.sequence_length * vision.hidden_size * (2 + len(vision.feature_layers))
    if "decoder" in qnn.stages:
        longest = max(last - first for first, last in parts.cut(decoder.layers, qnn.layers_per_part))
        cache = 2 * longest * decoder.kv_heads * decoder.head_dim * (capacity + chunk)
        yield cache + 4 * (chunk * 2 * (decoder.hidden_size + decoder.head_dim) + capacity + chunk)


def _int8_bytes(shape: tuple[int, ...], block: int | None) -> int:
    """A matrix of 8 bits: a float32 scale and a zero point a row, or a float16 scale a block."""
    outputs, inputs = shape
    codes = stored_bytes(outputs * inputs)
    if block is not None:
        return codes + stored_bytes(2 * outputs * math.ceil(inputs / block))
    return codes + stored_bytes(4 * outputs) + stored_bytes(outputs)


def _int4_bytes(shape: tuple[int, ...], block: int) -> int:
    """A matrix of 4 bits, LPBQ or, with a block of 0, per channel; or another parameter, in 16 bits."""
    if len(shape) != 2:
        return stored_bytes(2 * math.prod(shape))
    outputs, inputs = shape
    found = stored_bytes(outputs * inputs / 2) + stored_bytes(4 * outputs) + stored_bytes(outputs)
    blocks = math.ceil(inputs / block) if block else 0
    return found + stored_bytes(outputs * blocks) + stored_bytes(outputs * blocks / 2)


def _packed_bytes(shape: tuple[int, ...], block: int) -> int:
    """The same for the CPU: a float32 scale a block."""
    if len(shape) != 2:
        return stored_bytes(2 * math.prod(shape))
    outputs, inputs = shape
    blocks = math.ceil(inputs / block)
    return stored_bytes(outputs * blocks * block / 2) + stored_bytes(4 * outputs * blocks)
