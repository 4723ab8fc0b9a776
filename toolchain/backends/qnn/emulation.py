"""Runs compiled graphs on Qualcomm's emulation of the NPU and compares them with the same graphs on the CPU.

The emulation computes what the NPU computes, bit by bit as far as Qualcomm says, and takes seconds for what the NPU does in
microseconds. Inputs are those of a real conversation, as the graphs before have made them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import GateError
from pocketvlm.runtime.decoder import Decoder
from pocketvlm.runtime.engines.protocol import Array, BoundRun, EngineSession
from pocketvlm.runtime.manifest import VariantSpec
from pocketvlm.toolchain.backends.qnn.compiler import run_worker
from pocketvlm.toolchain.backends.qnn.graphs import Graph, Part
from pocketvlm.toolchain.progress import Progress
from pocketvlm.toolchain.quantize.calibration import Conversation
from pocketvlm.toolchain.stages import VISION_STAGES, OpenStages, open_stages

AGREEMENT = 0.9999
# About a minute of emulation.
_SMALL_PRODUCTS = 4e9


def wanted_graphs(parts: Iterable[Part], wish: str) -> list[Graph]:
    """The graphs that the recipe wants to see emulated."""
    graphs = [graph for part in parts for graph in part.graphs]
    return [graph for graph in graphs if wish == "all" or (wish == "small" and graph.products <= _SMALL_PRODUCTS)]


class Emulation:
    """Compares graphs on the emulation with graphs on the CPU.

    Args:
        folder: for what goes between the processes; it is removed afterwards.
        options: the provider's options that the graphs were compiled with.
        memory_bytes: the process that emulates is stopped when it takes more.
    """

    def __init__(self, folder: Path, options: dict[str, str], memory_bytes: int) -> None:
        self._folder, self._options, self._memory = folder, options, memory_bytes

    def check(
        self, on_cpu: VariantSpec, root: Path, sample: Conversation, graphs: list[Graph], progress: Progress
    ) -> dict[str, float]:
        """Agreement by graph.

        Raises:
            GateError: one is below AGREEMENT.
            EnvironmentFault: the emulation failed.
        """
        if not graphs:
            return {}
        recorded = record(on_cpu, root, sample, {graph.stage for graph in graphs})
        found = {}
        for graph in graphs:
            progress.note(f"emulating {graph.stage}")
            inputs, outputs = recorded[graph.stage]
            got = self._emulate(graph, inputs)
            found[graph.stage] = agreement(got, outputs)
            progress.note(f"{graph.stage}: cosine {found[graph.stage]:.6f} between the emulated NPU and the CPU")
            if not found[graph.stage] >= AGREEMENT:
                raise GateError(
                    f"{graph.stage}: the emulated NPU gives other numbers than the same graph on the CPU "
                    f"(cosine {found[graph.stage]:.5f} < {AGREEMENT})",
                    "the compiler has changed what the graph computes; report it with the model's config.json",
                )
        shutil.rmtree(self._folder, ignore_errors=True)
        return found

    def _emulate(self, graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        source, target = self._folder / "inputs.npz", self._folder / "outputs.npz"
        np.savez(source, allow_pickle=False, **inputs)
        job = {
            "work": "emulate",
            "graph": str(graph.path.absolute()),
            "inputs": str(source.absolute()),
            "outputs": str(target.absolute()),
            "options": self._options,
        }
        run_worker(self._folder, job, graph.stage, self._memory)
        with np.load(target, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def record(
    variant: VariantSpec, root: Path, sample: Conversation, wanted: set[str]
) -> dict[str, tuple[dict[str, Array], dict[str, Array]]]:
    """Inputs and outputs of graphs in the last call of each, while a conversation goes through all stages."""
    with open_stages(variant, root) as stages:
        recorders = {name: _Recorder(session, name in wanted) for name, session in stages.sessions.items()}
        values: NDArray[np.float32] = sample.pixels[: variant.vision_batch].numpy()
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
        self.inputs: dict[str, Array] = {}
        self.outputs: dict[str, Array] = {}

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


def agreement(got: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """Cosine between two sets of outputs: of all activations, or of all that goes into the cache, whichever is less."""
    found = []
    for cached in (False, True):
        names = [name for name in expected if name.startswith("new_") == cached]
        if names:
            a, b = (np.concatenate([side[name].reshape(-1) for name in names]).astype(np.float64) for side in (got, expected))
            found.append(float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)))
    return min(found)
