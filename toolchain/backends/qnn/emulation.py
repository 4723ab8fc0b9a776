"""Runs compiled graphs on Qualcomm's emulation of the NPU and compares them with the same graphs on the CPU.

The emulation is Qualcomm's model of the NPU's arithmetic, and takes seconds for what the NPU does in microseconds. Inputs are
those of a real conversation, as the graphs before have made them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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

# Cosine, for one layer. Both sides round to 16 bits and to the cache's 8, not always alike, and layers add that up.
AGREEMENT = 0.9999
# Where the CPU is further than that from float32 itself, the NPU may be so many times as far: the square of an error's length.
_AS_FAR = 2.0
_CPU_OPTIONS = {"graph_optimization": "disabled"}

Arrays = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near a graph on the emulated NPU comes to others on the same inputs.

    Attributes:
        what: the graph, or its first layer.
        cosine: with the same graph on the CPU.
        npu_float32, cpu_float32: of either with float32, where that was asked.
    """

    what: str
    cosine: float
    npu_float32: float | None = None
    cpu_float32: float | None = None

    @property
    def is_as_exact(self) -> bool:
        """Whether the NPU is about as near to float32 as the CPU is."""
        if self.npu_float32 is None or self.cpu_float32 is None:
            return False
        return 1 - self.npu_float32 <= _AS_FAR * (1 - self.cpu_float32)

    def __str__(self) -> str:
        told = f"cosine {self.cosine:.6f} between the emulated NPU and the CPU"
        if self.npu_float32 is None:
            return told
        return f"{told}, {self.npu_float32:.6f} and {self.cpu_float32:.6f} between these and float32"


class Recordings:
    """What graphs are given and give on the CPU in a real conversation; those of one export serve all SoCs."""

    def __init__(self, job: LowerJob) -> None:
        self._found: dict[str, tuple[Arrays, Arrays]] | None = None

    def of(self, on_cpu: VariantSpec, root: Path, sample: Conversation, wanted: set[str]) -> dict[str, tuple[Arrays, Arrays]]:
        """By stage; the arguments are those of the first call."""
        if self._found is None:
            self._found = record(on_cpu, root, sample, wanted)
        return self._found


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
        same, least = agreement(outputs, verified), least_agreement(graph.layers)
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
        found = Agreement(what, agreement(emulated, outputs))
        if not found.cosine >= least:
            exact = in_float32(graph, inputs)
            found = Agreement(what, found.cosine, agreement(emulated, exact), agreement(outputs, exact))
        self._progress.note(f"{what}: {found}")
        if not (found.cosine >= least or found.is_as_exact):
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
        np.savez(source, allow_pickle=False, **inputs)
        job = {
            "work": "emulate",
            "graph": str(path.absolute()),
            "inputs": str(source.absolute()),
            "outputs": str(target.absolute()),
            "options": self._options,
        }
        run_worker(self._folder, job, what, self._memory)
        with np.load(target, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        shutil.rmtree(self._folder)
        return found


def _run(path: Path, inputs: Mapping[str, Array]) -> Arrays:
    session = load_engine("onnxruntime").open(path, _CPU_OPTIONS, None)
    try:
        return session.run(inputs)
    finally:
        session.close()


def in_float32(graph: Graph, inputs: Mapping[str, Array]) -> Arrays:
    """What a graph gives without quantized activations; what enters the cache is in steps of its INT8 form, not rounded."""
    steps = graph.steps
    given = {name: x.astype(np.float32) * np.float32(steps.get(name, 1.0)) for name, x in inputs.items()}
    with float_run(graph.form) as run:
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
        count = min(sample.embeddings.shape[1], decoder.capacity - 1)
        # Full chunks only: what a graph makes of padding does not matter.
        count = max(count // decoder.chunk_size * decoder.chunk_size, 1) if count >= decoder.chunk_size else count
        logits = decoder.prefill(sample.embeddings[0, :count].numpy())
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


def agreement(got: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """Cosine between two sets of outputs: of all activations, or of all that goes into the cache, whichever is less."""
    found = []
    for cached in (False, True):
        names = [name for name in expected if name.startswith("new_") == cached]
        if names:
            a, b = (np.concatenate([side[name].reshape(-1) for name in names]).astype(np.float64) for side in (got, expected))
            found.append(float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)))
    return min(found)
