"""Runs compiled graphs on Qualcomm's emulation of the NPU and compares them with the same graphs on the CPU.

The emulation is Qualcomm's model of the NPU's arithmetic, and takes seconds for what the NPU does in microseconds. Inputs are
those of a real conversation, as the graphs before have made them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import GateError
from pocketvlm.runtime.decoder import Decoder
from pocketvlm.runtime.engines import load_engine
from pocketvlm.runtime.engines.protocol import Array, BoundRun, EngineSession
from pocketvlm.runtime.manifest import VariantSpec
from pocketvlm.toolchain.backends.base import LowerJob
from pocketvlm.toolchain.backends.qnn.compiler import run_worker
from pocketvlm.toolchain.backends.qnn.float_graph import float_run
from pocketvlm.toolchain.backends.qnn.graphs import Graph
from pocketvlm.toolchain.progress import Progress
from pocketvlm.toolchain.quantize.calibration import Conversation
from pocketvlm.toolchain.stages import VISION_STAGES, OpenStages, open_stages

# For one layer. Both sides round to 16 bits and to the cache's 8, not always alike, and layers add that up.
AGREEMENT = 0.9999
# Where the CPU itself is further than that from float32, the NPU may be so many times as far (the square of an error's length),
# as long as it comes so near.
_AS_FAR, _NEAR = 2.0, 0.99
_SMALLEST = 1e-30
_CPU_OPTIONS = {"graph_optimization": "disabled"}

Arrays = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near a graph on the emulated NPU comes to others on the same inputs; see `agreement`.

    Attributes:
        what: the graph, or its first layer.
        cosine: with the same graph on the CPU.
        npu_float32, cpu_float32: of either with float32, where that decided.
    """

    what: str
    cosine: float
    npu_float32: float | None = None
    cpu_float32: float | None = None

    def __str__(self) -> str:
        told = f"cosine {self.cosine:.6f} between the emulated NPU and the CPU"
        if self.npu_float32 is None:
            return told
        return f"{told}, {self.npu_float32:.6f} and {self.cpu_float32:.6f} between these and float32"


class Recordings:
    """What graphs are given and give on the CPU in a real conversation; those of one export serve all SoCs."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Arrays, Arrays]] | None = None

    def of(self, on_cpu: VariantSpec, root: Path, sample: Conversation, wanted: set[str]) -> dict[str, tuple[Arrays, Arrays]]:
        """By stage; the arguments are those of the first call."""
        if self._found is None:
            self._found = record(on_cpu, root, sample, wanted)
        return self._found


def recordings(job: LowerJob) -> Recordings:
    """Those of one export, by `LowerJob.once`."""
    return Recordings()


class Emulation:
    """Compares graphs on the emulation with the same graphs on the CPU.

    Args:
        folder: for what goes between the processes; it is removed afterwards.
        options: those that the compiler was given.
        memory_bytes: the process that emulates is stopped when it takes more.
    """

    def __init__(self, folder: Path, options: dict[str, str], memory_bytes: int, progress: Progress) -> None:
        self._folder, self._options, self._memory, self._progress = folder, options, memory_bytes, progress

    def check(self, graph: Graph, recorded: tuple[Arrays, Arrays], compiled: Path | None) -> Agreement:
        """Emulate the whole graph, or its first layer if that was written.

        The graph on the CPU is the very one that is compiled, and must agree with the form that has been verified, too. Where
        the emulated one does not agree with it, both are held against float32: a model whose activations reach far beyond the
        ordinary ones has steps so coarse that neither side's rounding can be told from the other's.

        Args:
            recorded: the graph's inputs, and its outputs in the form that has been verified.
            compiled: the graph's context model, where the emulation can run it; otherwise the graph is compiled once more.

        Raises:
            GateError: the agreement is below what the graph's layers allow, and the NPU further from float32 than the CPU.
            EnvironmentFault: the emulation failed.
        """
        inputs, verified = recorded
        outputs = _run(graph.path, inputs)
        same, least = min(agreement(outputs, verified).values()), least_agreement(graph.layers)
        if not same >= least:
            raise GateError(
                f"{graph.stage}: its two forms for the CPU give other numbers (cosine {same:.5f}, not at least {least:.5f})",
                "report it with the model's config.json",
            )
        what, path = graph.stage, compiled or graph.path
        if graph.first_layer is not None:
            graph, what, least = graph.first_layer, f"{graph.stage}, first layer", AGREEMENT
            path = graph.path
            inputs = {tensor.name: inputs[tensor.name] for tensor in graph.spec.inputs}
            outputs = _run(path, inputs)
        self._progress.note(f"emulating {what}")
        emulated = self._emulate(path, what, inputs)
        groups = agreement(emulated, outputs)
        found, passes = Agreement(what, min(groups.values())), True
        coarse = [group for group, cosine in groups.items() if not cosine >= least]
        if coarse:
            self._progress.note(f"{what}: cosine {found.cosine:.6f}, which float32 has to judge")
            exact = in_float32(graph, inputs, self._folder)
            npu, cpu = agreement(emulated, exact), agreement(outputs, exact)
            found = Agreement(what, found.cosine, min(npu[group] for group in coarse), min(cpu[group] for group in coarse))
            passes = all(cpu[group] < least and npu[group] >= _needed(cpu[group]) for group in coarse)
        self._progress.note(f"{what}: {found}")
        if not passes:
            raise GateError(
                f"{what}: the emulated NPU gives other numbers than the same graph on the CPU "
                f"({found}; wanted is at least {least:.5f})",
                "the compiler may have changed what the graph computes: `qnn.layers_per_part: 1` in the recipe shows in which "
                "layer, and `qnn.emulate: none` leaves this check out; please report it with the model's config.json",
            )
        return found

    def _emulate(self, path: Path, what: str, inputs: Mapping[str, Array]) -> Arrays:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        source, target = self._folder / "inputs.npz", self._folder / "outputs.npz"
        arrays: dict[str, Any] = dict(inputs)
        np.savez(source, **arrays)
        job = {
            "work": "emulate",
            "graph": str(path.absolute()),
            "inputs": str(source.absolute()),
            "outputs": str(target.absolute()),
            "options": self._options,
        }
        run_worker(self._folder, job, what, self._memory)
        with np.load(target, allow_pickle=False) as given:
            found = {name: given[name] for name in given.files}
        shutil.rmtree(self._folder)
        return found


def _run(path: Path, inputs: Mapping[str, Array]) -> Arrays:
    session = load_engine("onnxruntime").open(path, _CPU_OPTIONS, None)
    try:
        return session.run(inputs)
    finally:
        session.close()


def in_float32(graph: Graph, inputs: Mapping[str, Array], folder: Path) -> Arrays:
    """What a graph gives without quantized activations; what enters the cache is in steps of its INT8 form, not rounded.

    Args:
        folder: for the graph's float32 form, for as long as it takes; made when needed.
    """
    steps = graph.steps
    given = {name: x.astype(np.float32) * np.float32(steps.get(name, 1.0)) for name, x in inputs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with float_run(graph.form, folder) as run:
        return {name: x / np.float32(steps.get(name, 1.0)) for name, x in run.run(given).items()}


def record(variant: VariantSpec, root: Path, sample: Conversation, wanted: set[str]) -> dict[str, tuple[Arrays, Arrays]]:
    """Inputs and outputs of graphs in the last call of each, while a conversation goes through all stages."""
    with open_stages(variant, root) as stages:
        recorders = {name: _Recorder(session, name in wanted) for name, session in stages.sessions.items()}
        # Tiles again where they do not fill the batch: blank ones are in no range, and nobody reads what comes of them.
        tiles: NDArray[np.float32] = sample.pixels.numpy()
        values = np.resize(tiles, (variant.vision_batch, *tiles.shape[1:]))
        watched = OpenStages(variant, dict(recorders), stages.decoder)
        for name in VISION_STAGES:
            values = watched.run(name, values)
        decoder = Decoder(variant, dict(recorders))
        embeddings: NDArray[np.float32] = sample.embeddings[0].numpy()
        most, chunk = decoder.capacity - 1, decoder.chunk_size
        # Full chunks, of the conversation again where it fills none: what a graph makes of padding does not matter.
        count = min(len(embeddings), most) // chunk * chunk or min(chunk, most)
        logits = decoder.prefill(np.resize(embeddings, (count, embeddings.shape[1])))
        decoder.step(int(logits.argmax()))
    return {name: (recorder.inputs, recorder.outputs) for name, recorder in recorders.items() if name in wanted}


class _Recorder:
    """An engine session that remembers its last call."""

    def __init__(self, session: EngineSession, keeps: bool) -> None:
        self._session, self._keeps = session, keeps
        self.inputs: Arrays = {}
        self.outputs: Arrays = {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = self._session.run(inputs)
        self.keep(inputs, outputs)
        return outputs

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> BoundRun:
        return _RecordedRun(self, self._session.bind(inputs, outputs), inputs, outputs)

    def keep(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        if self._keeps:
            self.inputs = {name: array.copy() for name, array in inputs.items()}
            self.outputs = {name: array.copy() for name, array in outputs.items()}

    def cancel(self) -> None:
        self._session.cancel()

    def close(self) -> None:
        self._session.close()


class _RecordedRun:
    def __init__(self, owner: _Recorder, run: BoundRun, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        self._owner, self._run, self._inputs, self._outputs = owner, run, inputs, outputs

    def run(self) -> float:
        seconds = self._run.run()
        self._owner.keep(self._inputs, self._outputs)
        return seconds


def least_agreement(layers: int) -> float:
    """The cosine that a graph of so many layers must reach: the squares of independent errors add up."""
    return 1 - layers * (1 - AGREEMENT)


def _needed(cpu: float) -> float:
    """How near the NPU must come to float32 where the CPU comes so near."""
    return max(1 - _AS_FAR * (1 - cpu), _NEAR)


def agreement(got: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, float]:
    """How near two sets of outputs are: "activations", and "cache" for all that goes into it.

    The cosine, or what stands for it where lengths differ, too: one minus half the square of the relative error, whichever is
    less. It is taken at each position by itself, and the mean counts: some models have positions whose values are so large that
    nothing else would show beside them.
    """
    found = {}
    for group, cached in (("activations", False), ("cache", True)):
        names = [name for name in expected if name.startswith("new_") == cached]
        if names:
            one, other = (_by_position({name: side[name] for name in names}) for side in (got, expected))
            found[group] = float(np.mean([_rows(a, b).mean() for a, b in zip(one, other, strict=True)]))
    return found


def _by_position(values: Mapping[str, Array]) -> list[NDArray[np.float64]]:
    """Matrices with a row for each position: one for each activation, and one for all keys and values together."""
    columns = [
        x[0].transpose(2, 0, 1) if name.startswith("new_key") else x[0].swapaxes(0, 1)
        for name, x in values.items()
        if name.startswith(("new_key", "new_value"))
    ]
    if columns:
        return [np.concatenate([x.reshape(len(x), -1) for x in columns], 1).astype(np.float64)]
    return [x.reshape(-1, x.shape[-1]).astype(np.float64) for x in values.values()]


def _rows(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Agreement of each pair of rows; 1 where both are zero."""
    products, squares, wanted, error = (a * b).sum(1), (a * a).sum(1), (b * b).sum(1), np.square(a - b).sum(1)
    cosine = products / np.maximum(np.sqrt(squares * wanted), _SMALLEST)
    within = 1 - 0.5 * error / np.maximum(wanted, _SMALLEST)
    agreement: NDArray[np.float64] = np.where(error == 0, 1.0, np.minimum(cosine, within))
    return agreement
