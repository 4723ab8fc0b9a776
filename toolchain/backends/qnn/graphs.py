"""Writes the quantized graphs of all parts, which are the same for every SoC, into the export's work folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pocketvlm.runtime.manifest import StageSpec
from pocketvlm.toolchain.backends.base import LowerJob
from pocketvlm.toolchain.backends.onnx_graph import TensorFile
from pocketvlm.toolchain.backends.qnn import calibrate, parts, positions
from pocketvlm.toolchain.backends.qnn.half_graph import write_half
from pocketvlm.toolchain.backends.qnn.qdq_graph import quantizations, tensors_of, write_packed, write_qdq
from pocketvlm.toolchain.backends.qnn.static_graph import Range, StaticGraph
from pocketvlm.toolchain.backends.qnn.static_ops import MASKED, Int4, Weights
from pocketvlm.toolchain.kept import digest_of
from pocketvlm.toolchain.quantize.calibration import Conversation
from pocketvlm.toolchain.quantize.scheme import Granularity, WeightScheme
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.spec import DecoderSpec

# Sequences of plain text that the decoder's ranges are taken from, beside the conversations.
_TEXTS = 4
# About a minute of emulation.
SMALL_PRODUCTS = 4e9

Record = Callable[[int, int], StaticGraph]


@dataclass(frozen=True, slots=True)
class Graph:
    """One quantized graph.

    Attributes:
        stage: its name among the variant's stages.
        path: the model.
        spec: its tensors; the file is not yet that of a bundle.
        on_cpu: the same numbers in a form that the CPU computes faster; without one it takes the graph itself.
        form: what it was written from.
        steps: what one step of its int8 inputs and outputs stands for.
        layers: of the model, in this graph; 1 where it holds none.
        first_layer: its first layer by itself, for the emulation, of one among the graphs that are too large as a whole.
    """

    stage: str
    path: Path
    spec: StageSpec
    form: StaticGraph
    steps: Mapping[str, float] = field(default_factory=dict)
    layers: int = 1
    on_cpu: StageSpec | None = None
    first_layer: Graph | None = None

    @property
    def products(self) -> int:
        """Multiplications of one run."""
        return self.form.products()

    @property
    def is_small(self) -> bool:
        """Whether it can be emulated in about a minute."""
        return self.products <= SMALL_PRODUCTS


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
    positions: dict[str, StageSpec]


def chunk_of(job: LowerJob) -> int:
    """Positions of a prefill call."""
    return min(job.recipe.chunk_size, job.capacity)


def write_graphs(job: LowerJob) -> Graphs:
    """Calibrate and write everything that `job.recipe.qnn.stages` names."""
    folder = job.work / "graphs"
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Part] = []
    found: dict[str, StageSpec] = {}
    if "vision" in job.recipe.qnn.stages:
        written += _vision(job, folder)
    if "decoder" in job.recipe.qnn.stages:
        decoder, found = _decoder(job, folder)
        written += decoder
    return Graphs(tuple(written), found)


def _vision(job: LowerJob, folder: Path) -> list[Part]:
    spec, weights, batch = job.spec, job.weights, job.recipe.qnn.vision_batch
    ranges: dict[str, Range] | None = None
    masked = MASKED
    if job.recipe.qnn.vision_activations == "int16":
        patches = [job.model.patch_embed(item.pixels).numpy() for item in _once(job)]
        on = ["vision", spec.vision, spec.connector, digest_of(patches)]
        told = "ranges of the vision stages"
        ranges = job.kept.pairs("ranges", on, told)
        if ranges is None:
            job.progress.stage(told, max(1, spec.vision.blocks))
            ranges = calibrate.vision_ranges(spec, weights, patches, job.progress.advance)
            job.kept.keep_pairs("ranges", on, ranges)
        masked = calibrate.mask_scores(ranges)

    def record(first: int, last: int) -> StaticGraph:
        return parts.vision_part(spec, weights, first, last, batch, masked=masked)

    writer = _Writer(folder, ranges, samples=job.recipe.qnn.emulate == "small", packs=False)
    bounds = parts.cut(spec.vision.blocks, job.recipe.qnn.layers_per_part)
    made = writer.parts("vision_encoder", {"vision_encoder": record}, bounds)
    return [*made, writer.part("connector", {"connector": parts.connector(spec, weights, batch)})]


def _once(job: LowerJob) -> list[Conversation]:
    """One conversation for each image."""
    return list({item.image: item for item in job.conversations}.values())


def _decoder(job: LowerJob, folder: Path) -> tuple[list[Part], dict[str, StageSpec]]:
    """The parts of the decoder, and the graphs of positions that go with them."""
    spec, capacity, chunk, attention = job.spec, job.capacity, chunk_of(job), job.recipe.qnn.attention
    scheme = scheme_of(job.recipe)
    quantized = job.decoder(scheme)
    weights, int4 = quantized.weights, quantized.blocks
    texts = [row[None].numpy() for batch in job.sequences for row in batch][:_TEXTS]
    sequences = [item.embeddings[:, :capacity].numpy() for item in job.conversations] + [row[:, :capacity] for row in texts]
    on = ["decoder", spec.decoder, scheme, quantized.origin, chunk, capacity, attention, digest_of(sequences)]
    told = "ranges of the decoder"
    ranges = job.kept.pairs("ranges", on, told)
    if ranges is None:
        job.progress.stage(told, spec.decoder.layers)
        with _run_positions(spec.decoder, chunk, capacity) as run:
            ranges = calibrate.decoder_ranges(
                spec, weights, int4, sequences, run, length=chunk, capacity=capacity, attention=attention,
                advance=job.progress.advance,
            )  # fmt: skip
        job.kept.keep_pairs("ranges", on, ranges)
    masked = calibrate.mask_scores(ranges)

    def recorder(length: int) -> Record:
        return lambda first, last: parts.decoder_part(
            spec, weights, int4, first, last, length=length, capacity=capacity, attention=attention, masked=masked
        )

    writer = _Writer(folder, ranges, samples=job.recipe.qnn.emulate == "small", packs=True)
    bounds = parts.cut(spec.decoder.layers, job.recipe.qnn.layers_per_part)
    made = writer.parts("decoder", {"prefill": recorder(chunk), "decode": recorder(1)}, bounds)
    made.append(writer.part("lm_head", {"lm_head": parts.output_projection(spec, weights)}))
    return made, _positions(spec.decoder, folder, {"prefill": chunk, "decode": 1}, capacity, masked)


def int4_reader(weights: Weights, recipe: ExportRecipe) -> Int4:
    """The decoder's matrices, rounded to the recipe's form of INT4."""
    scheme = scheme_of(recipe)
    return lambda name: scheme.round(weights(f"{name}.weight"))


def scheme_of(recipe: ExportRecipe) -> WeightScheme:
    granularity: Granularity = "channel" if recipe.qnn.decoder_weights == "per_channel" else "lpbq"
    return WeightScheme(granularity, recipe.decoder_weights.block_size, symmetric=True)


class _Writer:
    """Writes quantized graphs.

    Args:
        ranges: None gives float16 activations.
        samples: whether the first layer of a graph that is too large for the emulation is written by itself, too.
        packs: whether the CPU gets a form of its own, for which there is no need where a call has many positions.
    """

    def __init__(self, folder: Path, ranges: dict[str, Range] | None, *, samples: bool, packs: bool) -> None:
        self._folder, self._ranges, self._samples, self._packs = folder, ranges, samples, packs

    def parts(self, name: str, records: dict[str, Record], bounds: list[tuple[int, int]]) -> list[Part]:
        """Graphs in parts of layers [first, last). Numbers go behind the names where there is more than one part."""
        made = []
        for number, (first, last) in enumerate(bounds):
            suffix = f".{number}" if len(bounds) > 1 else ""
            graphs = {f"{stage}{suffix}": record(first, last) for stage, record in records.items()}
            layers: dict[str, StaticGraph] = {}
            # One part in the middle stands for all.
            if self._samples and number == len(bounds) // 2:
                large = {stage for stage in records if graphs[f"{stage}{suffix}"].products() > SMALL_PRODUCTS}
                layers = {f"{stage}{suffix}": records[stage](first, first + 1) for stage in large}
            made.append(self.part(f"{name}{suffix}", graphs, max(1, last - first), layers))
        return made

    def part(
        self, name: str, graphs: dict[str, StaticGraph], layers: int = 1, first_layers: Mapping[str, StaticGraph] | None = None
    ) -> Part:
        """Graphs that share weights, by stage, each of so many layers."""
        data, sampled = self._folder / f"{name}.data", self._folder / f"{name}.first_layer.data"
        samples: dict[str, Graph] = {}
        # Apart from the rest, so that a part is the same whether it is sampled or not.
        if first_layers:
            with TensorFile(sampled) as tensors:
                for stage, graph in first_layers.items():
                    spec = self._write(f"{stage}.first_layer", graph, tensors, sampled)
                    samples[stage] = Graph(stage, Path(spec.file), spec, graph, self._steps(graph))
        with TensorFile(data) as tensors:
            specs = {stage: self._write(stage, graph, tensors, data) for stage, graph in graphs.items()}
        on_cpu = self._packed(name, graphs)
        made = [
            Graph(
                stage, Path(specs[stage].file), specs[stage], graph, self._steps(graph), layers, on_cpu.get(stage),
                samples.get(stage),
            )
            for stage, graph in graphs.items()
        ]  # fmt: skip
        return Part(name, tuple(made), data)

    def _steps(self, graph: StaticGraph) -> dict[str, float]:
        if self._ranges is None:
            return {}
        known = quantizations(graph, self._ranges)
        return {name: float(known[name].scale) for name in (*graph.inputs, *graph.outputs) if known[name].kind == "int8"}

    def _packed(self, name: str, graphs: dict[str, StaticGraph]) -> dict[str, StageSpec]:
        if self._ranges is None or not self._packs:
            return {}
        found, data = {}, self._folder / f"{name}.cpu.data"
        with TensorFile(data) as tensors:
            for stage, graph in graphs.items():
                path = self._folder / f"{stage}.cpu.onnx"
                write_packed(graph, self._ranges, path, tensors)
                found[stage] = StageSpec(str(path), *tensors_of(graph), (str(data),))
        return found

    def _write(self, stage: str, graph: StaticGraph, tensors: TensorFile, data: Path) -> StageSpec:
        path = self._folder / f"{stage}.onnx"
        if self._ranges is None:
            write_half(graph, path, tensors)
        else:
            write_qdq(graph, self._ranges, path, tensors)
        return StageSpec(str(path), *tensors_of(graph), (str(data),))


def _positions(
    decoder: DecoderSpec, folder: Path, lengths: dict[str, int], capacity: int, masked: float
) -> dict[str, StageSpec]:
    found = {}
    data = folder / "positions.data"
    with TensorFile(data) as tensors:
        for name, length in lengths.items():
            stage = f"{name}_positions"
            path = folder / f"{stage}.onnx"
            positions.write_positions(decoder, path, tensors, length=length, capacity=capacity, masked=masked)
            inputs, outputs = positions.tensors_of(decoder, length=length, capacity=capacity)
            found[stage] = StageSpec(str(path), inputs, outputs, (str(data),))
    return found


@contextmanager
def _run_positions(decoder: DecoderSpec, chunk: int, capacity: int) -> Iterator[calibrate.Positions]:
    """The graph of a chunk's positions, with a mask for floats."""
    with tempfile.TemporaryDirectory(prefix="pocketvlm-calibration-") as folder:
        graph = _positions(decoder, Path(folder), {"prefill": chunk}, capacity, MASKED)["prefill_positions"]
        session = onnxruntime.InferenceSession(graph.file, providers=["CPUExecutionProvider"])
        names = [tensor.name for tensor in graph.outputs]

        def run(past: int) -> dict[str, NDArray[np.float32]]:
            values = session.run(names, {"past_length": np.array([past], np.int64)})
            return dict(zip(names, values, strict=True))

        yield run
