"""Writes the quantized graphs of all parts, which are the same for every SoC, into the export's work folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pocketvlm.runtime.manifest import StageSpec
from pocketvlm.toolchain.backends.base import LowerJob
from pocketvlm.toolchain.backends.onnx_graph import TensorFile
from pocketvlm.toolchain.backends.qnn import calibrate, parts, positions
from pocketvlm.toolchain.backends.qnn.half_graph import write_half
from pocketvlm.toolchain.backends.qnn.qdq_graph import tensors_of, write_qdq
from pocketvlm.toolchain.backends.qnn.static_graph import Range, StaticGraph
from pocketvlm.toolchain.backends.qnn.static_ops import Int4, Weights
from pocketvlm.toolchain.quantize.calibration import Conversation
from pocketvlm.toolchain.quantize.scheme import Granularity, WeightScheme
from pocketvlm.toolchain.recipe import ExportRecipe

# Sequences of plain text that the decoder's ranges are taken from, beside the conversations.
_TEXTS = 4


@dataclass(frozen=True, slots=True)
class Graph:
    """One quantized graph.

    Attributes:
        stage: its name among the variant's stages.
        path: the model.
        spec: its tensors; the file is not yet that of a bundle.
        products: multiplications of one run.
    """

    stage: str
    path: Path
    spec: StageSpec
    products: int


@dataclass(frozen=True, slots=True)
class Part:
    """Graphs that share weights and are compiled together."""

    name: str
    graphs: tuple[Graph, ...]
    data: Path


@dataclass(frozen=True, slots=True)
class Graphs:
    """All graphs of the NPU, and those of the CPU that determine positions (by stage)."""

    parts: tuple[Part, ...]
    positions: dict[str, Graph]


def write_graphs(job: LowerJob, chunk: int) -> Graphs:
    """Calibrate and write everything that `job.recipe.qnn.stages` names.

    Args:
        chunk: positions of a prefill call.
    """
    folder = job.work / "graphs"
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Part] = []
    found: dict[str, Graph] = {}
    if "vision" in job.recipe.qnn.stages:
        written += _vision(job, folder)
    if "decoder" in job.recipe.qnn.stages:
        found = _positions(job, folder, {"prefill": chunk, "decode": 1})
        written += _decoder(job, folder, chunk, found["prefill_positions"])
    return Graphs(tuple(written), found)


def _vision(job: LowerJob, folder: Path) -> list[Part]:
    spec, weights, batch = job.spec, job.weights, job.recipe.qnn.vision_batch
    ranges: dict[str, Range] | None = None
    if job.recipe.qnn.vision_activations == "int16":
        job.progress.stage("ranges of the vision stages", max(1, spec.vision.blocks))
        patches = [job.model.patch_embed(item.pixels).numpy() for item in _once(job)]
        ranges = calibrate.vision_ranges(spec, weights, patches, job.progress.advance)
    bounds = parts.cut(spec.vision.blocks, job.recipe.qnn.layers_per_part)
    made = []
    for number, (first, last) in enumerate(bounds):
        name = f"vision_encoder.{number}" if len(bounds) > 1 else "vision_encoder"
        made.append(_part(folder, name, {name: parts.vision_part(spec, weights, first, last, batch)}, ranges))
    made.append(_part(folder, "connector", {"connector": parts.connector(spec, weights, batch)}, ranges))
    return made


def _once(job: LowerJob) -> list[Conversation]:
    """One conversation for each image."""
    return list({item.image: item for item in job.conversations}.values())


def _decoder(job: LowerJob, folder: Path, chunk: int, prefill_positions: Graph) -> list[Part]:
    spec, capacity = job.spec, job.capacity
    quantized = job.decoder(_scheme(job.recipe))
    weights, int4 = quantized.weights, quantized.blocks
    job.progress.stage("ranges of the decoder", spec.decoder.layers)
    texts = [row[None].numpy() for batch in job.sequences for row in batch][:_TEXTS]
    sequences = [item.embeddings[:, :capacity].numpy() for item in job.conversations] + [row[:, :capacity] for row in texts]
    ranges = calibrate.decoder_ranges(
        spec, weights, int4, sequences, _run_positions(prefill_positions), length=chunk, capacity=capacity,
        attention=job.recipe.qnn.attention, advance=job.progress.advance,
    )  # fmt: skip
    bounds = parts.cut(spec.decoder.layers, job.recipe.qnn.layers_per_part)
    made = []
    for number, (first, last) in enumerate(bounds):
        suffix = f".{number}" if len(bounds) > 1 else ""
        graphs = {
            f"{name}{suffix}": parts.decoder_part(
                spec, weights, int4, first, last, length=length, capacity=capacity, attention=job.recipe.qnn.attention
            )
            for name, length in (("prefill", chunk), ("decode", 1))
        }
        made.append(_part(folder, f"decoder{suffix}", graphs, ranges))
    made.append(_part(folder, "lm_head", {"lm_head": parts.output_projection(spec, weights)}, ranges))
    return made


def int4_reader(weights: Weights, recipe: ExportRecipe) -> Int4:
    """The decoder's matrices, rounded to the recipe's form of INT4."""
    scheme = _scheme(recipe)
    return lambda name: scheme.round(weights(f"{name}.weight"))


def _scheme(recipe: ExportRecipe) -> WeightScheme:
    granularity: Granularity = "channel" if recipe.qnn.decoder_weights == "per_channel" else "lpbq"
    return WeightScheme(granularity, recipe.decoder_weights.block_size, symmetric=True)


def _part(folder: Path, name: str, graphs: dict[str, StaticGraph], ranges: dict[str, Range] | None) -> Part:
    """Write graphs that share weights; without ranges, with float16 activations."""
    data = folder / f"{name}.data"
    made = []
    with TensorFile(data) as tensors:
        for stage, graph in graphs.items():
            path = folder / f"{stage}.onnx"
            if ranges is None:
                write_half(graph, path, tensors)
            else:
                write_qdq(graph, ranges, path, tensors)
            inputs, outputs = tensors_of(graph)
            made.append(Graph(stage, path, StageSpec(str(path), inputs, outputs, (str(data),)), graph.products()))
    return Part(name, tuple(made), data)


def _positions(job: LowerJob, folder: Path, lengths: dict[str, int]) -> dict[str, Graph]:
    decoder, found = job.spec.decoder, {}
    data = folder / "positions.data"
    with TensorFile(data) as tensors:
        for name, length in lengths.items():
            stage = f"{name}_positions"
            path = folder / f"{stage}.onnx"
            positions.write_positions(decoder, path, tensors, length=length, capacity=job.capacity)
            inputs, outputs = positions.tensors_of(decoder, length=length, capacity=job.capacity)
            found[stage] = Graph(stage, path, StageSpec(str(path), inputs, outputs, (str(data),)), 0)
    return found


def _run_positions(graph: Graph) -> Callable[[int], dict[str, NDArray[np.float32]]]:
    session = onnxruntime.InferenceSession(str(graph.path), providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in graph.spec.outputs]

    def run(past: int) -> dict[str, NDArray[np.float32]]:
        values = session.run(names, {"past_length": np.array([past], np.int64)})
        return dict(zip(names, values, strict=True))

    return run
