"""Tiles to visual tokens: in batches, the patch embedding ahead of the transformer."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import Cancelled
from pocketvlm.runtime.engines.protocol import Array, EngineSession
from pocketvlm.runtime.manifest import StageSpec, VariantSpec
from pocketvlm.runtime.trace import Trace
from pocketvlm.runtime.vision_contract import STAGES, check_contract, stage_names

_BATCHES_AHEAD = 2


class VisionEncoder:
    """The vision stages of one variant, opened when they are first needed.

    With `overlap`, a thread of its own runs patch_embed for the next batches while the caller's thread runs
    vision_encoder and connector on the current one (BlueLM-V-3B, section 3.2).

    Args:
        variant: shapes of patch_embed, vision_encoder and connector. A fixed batch size is filled up with zeros.
        open_session: opens a graph by its name among the variant's stages.
        batch: tiles per batch.

    Raises:
        BundleError: the stages do not have the inputs and outputs of these names.
    """

    def __init__(
        self,
        variant: VariantSpec,
        open_session: Callable[[str], EngineSession],
        *,
        batch: int,
        overlap: bool = True,
        trace: Trace | None = None,
    ) -> None:
        check_contract(variant)
        self._chains = {name: variant.chain(name) for name in STAGES}
        self._names = stage_names(variant)
        self._stages = variant.stages
        self._open_session = open_session
        self._batch = batch
        self._overlap = overlap
        self._trace = trace if trace is not None else Trace(enabled=False)
        self._sessions: dict[str, EngineSession] = {}
        self._use = threading.Lock()

    @property
    def loaded(self) -> bool:
        """Whether the stages are in memory."""
        return bool(self._sessions)

    def load(self) -> None:
        """Open the stages, if they are not."""
        with self._use:
            self._load()

    def release(self) -> None:
        """Close the stages after the image in work, if any; `encode` opens them again."""
        with self._use:
            sessions, self._sessions = self._sessions, {}
            for session in sessions.values():
                session.close()

    def cancel(self) -> None:
        """Stop the runs in progress, if any. May be called from any thread."""
        for session in list(self._sessions.values()):
            session.cancel()

    def encode(self, tiles: NDArray[np.float32], cancelled: Callable[[], bool] = lambda: False) -> NDArray[np.float32]:
        """Visual tokens float32 [tiles, T, H] of tiles float32 [tiles, 3, S, S].

        Raises:
            Cancelled: `cancelled()` became true between two stages, or `cancel` was called during one.
        """
        with self._use:
            self._load()
            batches = self._patches_ahead(tiles, cancelled) if self._overlap else self._patches(tiles, cancelled)
            tokens = []
            with closing(batches):
                for index, patches in enumerate(batches):
                    features = self._run("vision_encoder", index, patches, cancelled)
                    tokens.append(self._run("connector", index, features, cancelled))
            return np.concatenate(tokens)

    def _load(self) -> None:
        if self._sessions:
            return
        opened: dict[str, EngineSession] = {}
        try:
            for name in self._names:
                with self._trace.span("load", stage=name):
                    opened[name] = self._open_session(name)
        except BaseException:
            for session in opened.values():
                session.close()
            raise
        self._sessions = opened

    def _patches(self, tiles: NDArray[np.float32], cancelled: Callable[[], bool]) -> Generator[Array, None, None]:
        for index, start in enumerate(range(0, len(tiles), self._batch)):
            yield self._run("patch_embed", index, tiles[start : start + self._batch], cancelled)

    def _patches_ahead(self, tiles: NDArray[np.float32], cancelled: Callable[[], bool]) -> Generator[Array, None, None]:
        ready: queue.Queue[Array | BaseException | None] = queue.Queue(maxsize=_BATCHES_AHEAD)
        stop = threading.Event()

        def produce() -> None:
            try:
                for patches in self._patches(tiles, lambda: stop.is_set() or cancelled()):
                    ready.put(patches)
                ready.put(None)
            except BaseException as error:
                ready.put(error)

        producer = threading.Thread(target=produce, name="patch embedding", daemon=True)
        producer.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            # The producer may be waiting for room in the queue.
            while producer.is_alive():
                try:
                    ready.get(timeout=0.01)
                except queue.Empty:
                    continue
            producer.join()

    def _run(self, stage: str, batch: int, values: Array, cancelled: Callable[[], bool]) -> Array:
        if cancelled():
            raise Cancelled("the image encoding was cancelled")
        with self._trace.span(stage, batch=batch, tiles=len(values)):
            chain = self._chains[stage]
            return run_stage([self._sessions[part] for part in chain], [self._stages[part] for part in chain], values)


class ImageCache:
    """Visual tokens by image key; the least recently used ones go when the sum exceeds `max_bytes`. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._items: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> NDArray[np.float32] | None:
        """The tokens of that key, if they are still here."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: str, tokens: NDArray[np.float32]) -> None:
        """Keep `tokens`, unless they alone exceed the limit."""
        with self._lock:
            if key in self._items or tokens.nbytes > self._max_bytes:
                return
            self._items[key] = tokens
            self._bytes += tokens.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._items.popitem(last=False)[1].nbytes


def run_stage(sessions: Sequence[EngineSession], stages: Sequence[StageSpec], values: Array) -> Array:
    """Output of a vision stage for `values` [n, ...]; a fixed batch is filled up with zeros, whose results are dropped.

    Args:
        sessions, stages: the parts of the stage, in order.
    """
    source = stages[0].inputs[0]
    size = source.shape[0]
    if not isinstance(size, int):
        return _run_parts(sessions, stages, values)
    results: list[NDArray[Any]] = []
    for start in range(0, len(values), size):
        part = values[start : start + size]
        if len(part) < size:
            padding = np.zeros((size - len(part), *part.shape[1:]), part.dtype)
            full = np.concatenate([part, padding])
        else:
            full = part
        results.append(_run_parts(sessions, stages, full)[: len(part)])
    return np.concatenate(results)


def _run_parts(sessions: Sequence[EngineSession], stages: Sequence[StageSpec], values: Array) -> Array:
    known = {stages[0].inputs[0].name: values}
    for session, stage in zip(sessions, stages, strict=True):
        known |= session.run({tensor.name: known[tensor.name] for tensor in stage.inputs})
    return known[stages[-1].outputs[0].name]
