"""Ranks the choices that a recipe leaves open by the compiler's simulated times, on one layer of the model.

The work that is compared is a phone's screen with a question and an answer: all its tiles through the vision tower, all its
positions and every token of the answer through the decoder. The times are of a simulated chip of the nearest architecture. They
rank designs; they are no phone's latency.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketvlm.errors import EnvironmentFault, GateError
from pocketvlm.runtime.tiling import plan_tiles
from pocketvlm.toolchain.backends.base import Candidate, Choice
from pocketvlm.toolchain.backends.qnn import parts
from pocketvlm.toolchain.backends.qnn.graphs import int4_reader
from pocketvlm.toolchain.backends.qnn.simulated import Simulated, simulate
from pocketvlm.toolchain.backends.qnn.socs import Soc
from pocketvlm.toolchain.backends.qnn.static_graph import StaticGraph
from pocketvlm.toolchain.backends.qnn.static_ops import Attention, Weights
from pocketvlm.toolchain.progress import Progress
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.spec import ModelSpec

_SCREEN = (1080, 2400)
_QUESTION = 64
_ANSWER = 64
_BATCHES = (1, 2, 4)
_CHUNKS = (32, 128, 256)
_ATTENTIONS = ("joined", "split")
_MEMORIES = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's graph, by everything that its estimate depends on.

    Attributes:
        size: tiles, or positions, of one run.
        attention: the decoder's form; None for a block of the vision tower.
    """

    size: int
    attention: Attention | None
    vtcm_mb: int


@dataclass(frozen=True, slots=True)
class _Work:
    """A part of the answer: all layers of one half of the model, as often as a recipe has them run.

    Attributes:
        told: what it is, for readers.
        layer, runs: of a recipe.
        layers: how many there are.
    """

    told: str
    layer: Callable[[ExportRecipe], _Layer]
    runs: Callable[[ExportRecipe], int]
    layers: int


@dataclass(frozen=True, slots=True)
class _Setting:
    """A setting, its candidates, and the work that it makes faster or slower."""

    key: str
    values: tuple[int | str, ...]
    works: tuple[_Work, ...]


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
        self._known: dict[_Layer, Simulated | GateError | EnvironmentFault] = {}

    def tune(self) -> tuple[ExportRecipe, list[Choice]]:
        """The recipe with the winners, and what they were compared with.

        One choice is made after the other, each with the winners before it.

        Raises:
            GateError, EnvironmentFault: the compiler can do nothing with any candidate of a setting.
        """
        settings = self._settings()
        self._progress.stage("tune", sum(len(setting.values) for setting in settings))
        recipe, chosen = self._recipe, []
        for setting in settings:
            recipe, choice = self._choose(recipe, setting)
            chosen.append(choice)
        return recipe, chosen

    def _settings(self) -> list[_Setting]:
        """What is chosen, in this order."""
        found: list[_Setting] = []
        vision = self._vision_work() if "vision" in self._recipe.qnn.stages else ()
        if vision:
            found.append(_Setting("qnn.vision_batch", _BATCHES, vision))
        decoder: tuple[_Work, ...] = ()
        if "decoder" in self._recipe.qnn.stages:
            prefill, decode = decoder = self._decoder_works()
            chunks = sorted({min(size, self._capacity) for size in _CHUNKS})
            found.append(_Setting("chunk_size", tuple(chunks), (prefill,)))
            found.append(_Setting("qnn.attention", _ATTENTIONS, (prefill, decode)))
        if vision or decoder:
            memories = tuple(size for size in _MEMORIES if size <= self._soc.vtcm_mb)
            found.append(_Setting("qnn.vtcm_mb", memories, (*vision, *decoder)))
        return found

    def _vision_work(self) -> tuple[_Work, ...]:
        """None for a tower whose features are its embeddings."""
        blocks = self._spec.vision.blocks
        tiles = plan_tiles(*_SCREEN, self._spec.tiling, self._spec.image_tokens).encoded_tiles
        work = _Work(
            f"{tiles} {'tile' if tiles == 1 else 'tiles'}",
            lambda recipe: _Layer(recipe.qnn.vision_batch, None, self._vtcm(recipe)),
            lambda recipe: math.ceil(tiles / recipe.qnn.vision_batch),
            blocks,
        )
        return (work,) if blocks else ()

    def _decoder_works(self) -> tuple[_Work, _Work]:
        """Prefill and decode."""
        layers = self._spec.decoder.layers
        tokens = plan_tiles(*_SCREEN, self._spec.tiling, self._spec.image_tokens).image_tokens
        positions = min(tokens + _QUESTION, self._capacity)
        prefill = _Work(
            f"{positions} positions of prompt",
            lambda recipe: _Layer(recipe.chunk_size, recipe.qnn.attention, self._vtcm(recipe)),
            lambda recipe: math.ceil(positions / recipe.chunk_size),
            layers,
        )
        decode = _Work(
            f"{_ANSWER} tokens of answer",
            lambda recipe: _Layer(1, recipe.qnn.attention, self._vtcm(recipe)),
            lambda recipe: _ANSWER,
            layers,
        )
        return prefill, decode

    def _vtcm(self, recipe: ExportRecipe) -> int:
        return recipe.qnn.vtcm_mb or self._soc.vtcm_mb

    def _choose(self, recipe: ExportRecipe, setting: _Setting) -> tuple[ExportRecipe, Choice]:
        """The recipe with the fastest candidate. One that cannot be compiled is marked so, and is out."""
        told = f"{', '.join(work.told for work in setting.works)}; all layers"
        tried: list[Candidate] = []
        ranked: list[tuple[float, int, ExportRecipe]] = []
        failed: list[GateError | EnvironmentFault] = []
        for value in setting.values:
            changed = _with(recipe, setting.key, value)
            try:
                milliseconds, spilled = self._estimate(changed, setting.works)
                ranked.append((milliseconds, len(tried), changed))
                tried.append(Candidate(str(value), milliseconds, spilled))
                self._progress.note(f"{setting.key} {value}: {milliseconds:.1f} ms simulated for {told}")
            except (GateError, EnvironmentFault) as error:
                failed.append(error)
                tried.append(Candidate(str(value), None, 0, error.message))
                self._progress.note(f"{setting.key} {value}: {error.message}")
            self._progress.advance(1)
        if not ranked:
            first = failed[0]
            raise type(first)(
                f"{setting.key}: none of {', '.join(map(str, setting.values))} can be compiled: {first.message}",
                # One layer is the least that there is, and what the compiler has said is gone with the scratch folder.
                first.hint if isinstance(first, GateError) else "set qnn.memory_gb higher, or report it with config.json",
            )
        _, index, best = min(ranked, key=lambda item: item[:2])
        return best, Choice(setting.key, told, tried[index].value, tuple(tried))

    def _estimate(self, recipe: ExportRecipe, works: tuple[_Work, ...]) -> tuple[float, int]:
        """Simulated milliseconds of all works, and the most that a layer of any of them spills.

        Raises:
            GateError, EnvironmentFault: a layer cannot be compiled.
        """
        milliseconds, spilled = 0.0, 0
        for work in works:
            found = self._simulate(recipe, work.layer(recipe))
            milliseconds += found.microseconds * work.runs(recipe) * work.layers / 1000
            spilled = max(spilled, found.spilled_bytes)
        return milliseconds, spilled

    def _simulate(self, recipe: ExportRecipe, layer: _Layer) -> Simulated:
        """Each layer once, whether it can be compiled or not."""
        if layer not in self._known:
            memory = int(recipe.qnn.memory_gb * 1e9)
            half = layer.attention is None and recipe.qnn.vision_activations == "float16"
            try:
                folder = self._scratch / "simulated"
                self._known[layer] = simulate(self._graph(layer), self._soc, folder, memory, layer.vtcm_mb, half=half)
            except (GateError, EnvironmentFault) as error:
                self._known[layer] = error
        found = self._known[layer]
        if not isinstance(found, Simulated):
            raise found
        return found

    def _graph(self, layer: _Layer) -> StaticGraph:
        spec, weights = self._spec, self._weights
        if layer.attention is None:
            return parts.vision_part(spec, weights, *_middle(spec.vision.blocks), layer.size)
        return parts.decoder_part(
            spec, weights, int4_reader(weights, self._recipe), *_middle(spec.decoder.layers), length=layer.size,
            capacity=self._capacity, attention=layer.attention,
        )  # fmt: skip


def _middle(layers: int) -> tuple[int, int]:
    """A layer that is neither first nor last, where there is one."""
    index = min(1, layers - 1)
    return index, index + 1


def _with(recipe: ExportRecipe, key: str, value: Any) -> ExportRecipe:
    """The recipe with one setting replaced."""
    section, _, name = key.rpartition(".")
    if not section:
        return replace(recipe, **{name: value})
    return replace(recipe, **{section: replace(getattr(recipe, section), **{name: value})})
