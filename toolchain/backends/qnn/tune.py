"""Ranks the choices that a recipe leaves open by the compiler's simulated times, on one layer of the model.

The work that is compared is a phone's screen with a question: all its tiles through the vision tower, all its positions through
the decoder. The times are of a simulated chip of the nearest architecture. They rank designs; they are no phone's latency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pocketvlm.runtime.tiling import plan_tiles
from pocketvlm.toolchain.backends.base import Candidate, Choice
from pocketvlm.toolchain.backends.qnn import parts
from pocketvlm.toolchain.backends.qnn.graphs import int4_reader
from pocketvlm.toolchain.backends.qnn.simulated import simulate
from pocketvlm.toolchain.backends.qnn.socs import Soc
from pocketvlm.toolchain.backends.qnn.static_graph import StaticGraph
from pocketvlm.toolchain.backends.qnn.static_ops import Weights
from pocketvlm.toolchain.progress import Progress
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.spec import ModelSpec

_SCREEN = (1080, 2400)
_QUESTION = 64
_BATCHES = (1, 2, 4)
_CHUNKS = (32, 128, 256)
_ATTENTIONS = ("joined", "split")
_MEMORIES = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class _Work:
    """What is compared: tiles and positions of a phone's screen with a question."""

    tiles: int
    positions: int


class Tuner:
    """Tries candidates for one chip.

    Args:
        scratch: folder for what the compiler reads and writes.
        capacity: positions of the cache.
    """

    def __init__(
        self,
        soc: Soc,
        spec: ModelSpec,
        weights: Weights,
        recipe: ExportRecipe,
        capacity: int,
        scratch: Path,
        progress: Progress,
    ) -> None:
        self._soc, self._spec, self._weights, self._recipe = soc, spec, weights, recipe
        self._capacity, self._scratch, self._progress = capacity, scratch, progress
        self._vtcm_mb = recipe.qnn.vtcm_mb
        plan = plan_tiles(*_SCREEN, spec.tiling, spec.image_tokens)
        self._work = _Work(plan.encoded_tiles, min(plan.image_tokens + _QUESTION, capacity))

    def tune(self) -> tuple[ExportRecipe, list[Choice]]:
        """The recipe with the winners, and what they were compared with.

        One choice is made after the other, each with the winners before it.
        """
        recipe, qnn = self._recipe, self._recipe.qnn
        chosen: list[Choice] = []
        if "vision" in qnn.stages:
            chosen.append(self._choose("qnn.vision_batch", _BATCHES, self._vision, f"{self._work.tiles} tiles, all blocks"))
            qnn = replace(qnn, vision_batch=int(chosen[-1].winner))
        if "decoder" in qnn.stages:
            what = f"{self._work.positions} positions, all layers"
            chunks = [size for size in _CHUNKS if size <= self._capacity]
            chosen.append(self._choose("chunk_size", chunks, lambda size: self._prefill(size, qnn.attention), what))
            recipe = replace(recipe, chunk_size=int(chosen[-1].winner))
            chunk = recipe.chunk_size
            chosen.append(self._choose("qnn.attention", _ATTENTIONS, lambda form: self._prefill(chunk, str(form)), what))
            qnn = replace(qnn, attention="split" if chosen[-1].winner == "split" else "joined")
            attention = qnn.attention

            def in_memory(size: int | str) -> tuple[float, int]:
                self._vtcm_mb = int(size)
                return self._prefill(chunk, attention)

            memories = [size for size in _MEMORIES if size <= self._soc.vtcm_mb]
            chosen.append(self._choose("qnn.vtcm_mb", memories, in_memory, what))
            qnn = replace(qnn, vtcm_mb=int(chosen[-1].winner))
        return replace(recipe, qnn=qnn), chosen

    def _choose(
        self, key: str, values: Sequence[int | str], measure: Callable[[int | str], tuple[float, int]], what: str
    ) -> Choice:
        candidates = []
        for value in values:
            milliseconds, spilled = measure(value)
            candidates.append(Candidate(str(value), milliseconds, spilled))
            self._progress.note(f"{key} {value}: {milliseconds:.1f} ms simulated for {what}")
            self._progress.advance(1)
        return Choice(key, what, min(candidates, key=lambda item: item.milliseconds).value, tuple(candidates))

    def _vision(self, batch: int | str) -> tuple[float, int]:
        """Simulated milliseconds of all blocks for all tiles, and bytes that one block spills."""
        graph = parts.vision_part(self._spec, self._weights, *self._middle(self._spec.vision.blocks), int(batch))
        microseconds, spilled = self._simulate(graph)
        runs = math.ceil(self._work.tiles / int(batch))
        return microseconds * runs * self._spec.vision.blocks / 1000, spilled

    def _prefill(self, length: int | str, attention: str) -> tuple[float, int]:
        """Simulated milliseconds of all layers for all positions, and bytes that one layer spills."""
        decoder = self._spec.decoder
        graph = parts.decoder_part(
            self._spec, self._weights, int4_reader(self._weights, self._recipe), *self._middle(decoder.layers),
            length=int(length), capacity=self._capacity, attention="split" if attention == "split" else "joined",
        )  # fmt: skip
        microseconds, spilled = self._simulate(graph)
        return microseconds * math.ceil(self._work.positions / int(length)) * decoder.layers / 1000, spilled

    @staticmethod
    def _middle(layers: int) -> tuple[int, int]:
        """A layer that is neither first nor last, where there is one."""
        index = min(1, layers - 1)
        return index, index + 1

    def _simulate(self, graph: StaticGraph) -> tuple[int, int]:
        memory = int(self._recipe.qnn.memory_gb * 1e9)
        found = simulate(graph, self._soc, self._scratch / "simulated", memory, self._vtcm_mb)
        return found.microseconds, found.spilled_bytes
