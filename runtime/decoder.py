"""Runs the decoder's stages: token embedding, prefill in chunks, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import BundleError, Cancelled
from pocketvlm.runtime.engines.protocol import Array, BoundRun, EngineSession, dtype_of
from pocketvlm.runtime.kv_cache import KvCache
from pocketvlm.runtime.manifest import StageSpec, TensorSpec, VariantSpec
from pocketvlm.runtime.trace import Trace

STAGES = ("embed_tokens", "prefill", "decode")


class Rows(Protocol):
    """Embeddings that are made as they are needed."""

    def __len__(self) -> int:
        """Number of positions."""

    def fill(self, start: int, out: Array) -> None:
        """Write the embeddings of positions [start, start + len(out)) into `out` [n, H]."""


class Decoder:
    """The language model of one variant, with its cache.

    Positions 0 to `length` - 1 are in the cache. Whatever is raised, `length` only counts columns that are whole.

    Args:
        variant: the stages' shapes and the cache's.
        sessions: opened stages: embed_tokens, prefill, decode; two of them may be the same session.
        trace: where spans go.

    Raises:
        BundleError: the stages do not have the inputs and outputs of a decoder.
    """

    def __init__(self, variant: VariantSpec, sessions: Mapping[str, EngineSession], trace: Trace | None = None) -> None:
        stages = {name: variant.stages[name] for name in STAGES}
        _check_contract(variant)
        self.cache = KvCache(variant.kv_cache)
        self.engine_seconds = 0.0
        self._sessions = {name: sessions[name] for name in STAGES}
        self._trace = trace if trace is not None else Trace(enabled=False)
        self._columns = variant.kv_cache.protocol == "columns"
        embeddings = _tensor(stages["decode"].inputs, "embeddings")
        logits = _tensor(stages["decode"].outputs, "logits")
        chunk = _tensor(stages["prefill"].inputs, "embeddings").shape[1]
        self._fixed_chunk = isinstance(chunk, int)
        self._chunk_gives_logits = any(tensor.name == "logits" for tensor in stages["prefill"].outputs)
        self.chunk_size = chunk if isinstance(chunk, int) else variant.kv_cache.chunk_size
        self.hidden_size = _last_size(embeddings)
        dtype = dtype_of(embeddings.dtype)
        self._chunk = np.zeros((1, self.chunk_size, self.hidden_size), dtype)
        self._row = np.zeros((1, 1, self.hidden_size), dtype)
        self._token = np.zeros((1, 1), np.int64)
        self._past = np.zeros(1, np.int64)
        self._logits = np.zeros((1, _last_size(logits)), dtype_of(logits.dtype))
        self._embed_row = self._sessions["embed_tokens"].bind({"token_ids": self._token}, {"embeddings": self._row})
        self._step = self._bind("decode", self._row)
        self._full_chunk = self._bind("prefill", self._chunk)

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return self.cache.length

    @property
    def capacity(self) -> int:
        """Largest number of positions."""
        return self.cache.spec.capacity

    def reset(self, length: int = 0) -> None:
        """Forget all positions from `length` on."""
        self.cache.truncate(length)

    def embed(self, token_ids: Sequence[int]) -> NDArray[Any]:
        """Embeddings [L, H] of L >= 1 token ids."""
        ids = np.asarray(token_ids, np.int64).reshape(1, -1)
        embedded: NDArray[Any] = self._sessions["embed_tokens"].run({"token_ids": ids})["embeddings"][0]
        return embedded

    def prefill(
        self, embeddings: Rows | NDArray[Any], start: int = 0, cancelled: Callable[[], bool] = lambda: False
    ) -> NDArray[Any]:
        """Compute positions `start` to the end of `embeddings` [L, H] in chunks; returns the last position's logits [V].

        The cache must hold the first `start` positions; later ones are forgotten. The logits are overwritten by the next
        call of `prefill` or `step`.

        Raises:
            Cancelled: `cancelled()` became true between chunks, or `cancel` was called during one. The chunks before
                stay in the cache.
            ValueError: nothing to compute, or more positions than the cache can hold.
        """
        rows = _ArrayRows(embeddings) if isinstance(embeddings, np.ndarray) else embeddings
        total = len(rows)
        if not 0 <= start < total <= self.capacity:
            raise ValueError(f"cannot prefill positions {start} to {total} of a cache of {self.capacity}")
        self.reset(start)
        while self.length < total:
            if cancelled():
                raise Cancelled("the prefill was cancelled")
            self._prefill_chunk(rows, min(self.chunk_size, total - self.length), total)
        logits: NDArray[Any] = self._logits[0]
        return logits

    def step(self, token_id: int) -> NDArray[Any]:
        """Append one token; returns the logits [V] of the next, which the next call overwrites.

        Raises:
            Cancelled: `cancel` was called meanwhile; the token is then not in the cache.
            ValueError: the cache is full.
        """
        if self.length >= self.capacity:
            raise ValueError(f"the cache is full: {self.capacity} positions")
        with self._trace.span("decode", position=self.length):
            self._token[0, 0] = token_id
            self.engine_seconds += self._embed_row.run()
            self._run(self._step, 1)
        logits: NDArray[Any] = self._logits[0]
        return logits

    def cancel(self) -> None:
        """Stop the run in progress, if any. May be called from any thread."""
        for session in self._sessions.values():
            session.cancel()

    def _prefill_chunk(self, rows: Rows, count: int, total: int) -> None:
        # A graph of fixed length gives the logits of the last place, which may be padding, and some give none. Then the
        # last token goes through the decode stage instead.
        padded = self._fixed_chunk and count < self.chunk_size
        last_by_step = self.length + count == total and (padded or not self._chunk_gives_logits)
        with self._trace.span("prefill", position=self.length, tokens=count):
            if last_by_step:
                count -= 1
            if count:
                rows.fill(self.length, self._chunk[0, :count])
                self._chunk[0, count:] = 0
                short = count < self.chunk_size and not self._fixed_chunk
                run = self._bind("prefill", self._chunk[:, :count]) if short else self._full_chunk
                self._run(run, count)
            if last_by_step:
                rows.fill(total - 1, self._row[0])
                self._run(self._step, 1)

    def _bind(self, stage: str, embeddings: Array) -> _Bound:
        inputs = {"embeddings": embeddings, "past_length": self._past, **self.cache.past()}
        spec = self.cache.spec
        new: dict[str, Array] = {}
        if self._columns:
            shape = (1, spec.kv_heads, embeddings.shape[1], spec.head_dim)
            new = {name.replace("past_", "new_"): np.zeros(shape, dtype_of(spec.dtype)) for name in self.cache.past()}
        outputs = dict(new if self._columns else self.cache.present())
        if stage == "decode" or self._chunk_gives_logits:
            outputs["logits"] = self._logits
        return _Bound(self._sessions[stage].bind(inputs, outputs), new)

    def _run(self, bound: _Bound, count: int) -> None:
        self._past[0] = self.length
        self.engine_seconds += bound.run.run()
        if self._columns:
            self.cache.append(bound.new, count)
        else:
            self.cache.advance(count)


@dataclass(frozen=True, slots=True)
class _Bound:
    """A stage on its buffers; `new` are the arrays of the "columns" protocol."""

    run: BoundRun
    new: dict[str, Array]


class _ArrayRows:
    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def fill(self, start: int, out: Array) -> None:
        out[...] = self._array[start : start + len(out)]


def _check_contract(variant: VariantSpec) -> None:
    spec = variant.kv_cache
    new = "present" if spec.protocol == "in_place" else "new"
    past = {f"past_{kind}.{layer}" for kind in ("key", "value") for layer in range(spec.layers)}
    for name in ("prefill", "decode"):
        stage = variant.stages[name]
        _require(stage, name, stage.inputs, {"embeddings", "past_length", *past})
        made = {item.replace("past", new) for item in past}
        if name == "decode" or any(tensor.name == "logits" for tensor in stage.outputs):
            made.add("logits")
        _require(stage, name, stage.outputs, made)
    _require(variant.stages["embed_tokens"], "embed_tokens", variant.stages["embed_tokens"].inputs, {"token_ids"})
    _require(variant.stages["embed_tokens"], "embed_tokens", variant.stages["embed_tokens"].outputs, {"embeddings"})
    chunk = _tensor(variant.stages["prefill"].inputs, "embeddings").shape[1]
    if isinstance(chunk, int) and spec.protocol == "in_place":
        # A padded chunk near the end would be written past the capacity.
        raise BundleError("manifest.json: stage prefill has a fixed length with the in_place cache protocol")


def _require(stage: StageSpec, name: str, tensors: tuple[TensorSpec, ...], wanted: set[str]) -> None:
    found = {tensor.name for tensor in tensors}
    if found != wanted:
        difference = ", ".join(sorted(found ^ wanted)[:4])
        raise BundleError(
            f"manifest.json: stage {name} ({stage.file}) differs from the decoder's inputs and outputs in {difference}",
            "export the checkpoint again",
        )


def _tensor(tensors: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    return next(tensor for tensor in tensors if tensor.name == name)


def _last_size(tensor: TensorSpec) -> int:
    size = tensor.shape[-1] if tensor.shape else ""
    if not isinstance(size, int):
        raise BundleError(f"manifest.json: the last dimension of {tensor.name!r} must be a number, not {size!r}")
    return size
