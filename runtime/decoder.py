"""Runs the decoder's stages: token embedding, prefill in chunks, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import Cancelled
from pocketvlm.runtime.decoder_contract import check_contract, decoder_chain, find_tensor, last_size, stage_names
from pocketvlm.runtime.engines.protocol import Array, BoundRun, EngineSession, dtype_of
from pocketvlm.runtime.kv_cache import KvCache
from pocketvlm.runtime.manifest import TensorSpec, VariantSpec
from pocketvlm.runtime.trace import Trace


class Rows(Protocol):
    """Embeddings that are made as they are needed."""

    def __len__(self) -> int:
        """Number of positions."""

    def fill(self, start: int, out: Array) -> None:
        """Write the embeddings of positions [start, start + len(out)) into `out` [n, H]."""


class Decoder:
    """The language model of one variant, with its cache.

    Positions 0 to `length` - 1 are in the cache. Whatever is raised, `length` only counts columns that are whole.

    A call runs a chain of graphs over named buffers: what determines positions, if that is a stage of its own, the parts of
    prefill or decode, and lm_head, if there is one, for the position whose logits are wanted.

    Args:
        variant: the stages' shapes and the cache's.
        sessions: opened graphs by stage name; two of them may be the same session.
        trace: where spans go.

    Raises:
        BundleError: the stages do not have the inputs and outputs of a decoder.
    """

    def __init__(self, variant: VariantSpec, sessions: Mapping[str, EngineSession], trace: Trace | None = None) -> None:
        self._chains = {name: decoder_chain(variant, name) for name in ("prefill", "decode")}
        check_contract(variant, self._chains)
        self.cache = KvCache(variant.kv_cache)
        self.engine_seconds = 0.0
        self._variant = variant
        self._sessions = {name: sessions[name] for name in stage_names(variant)}
        self._trace = trace if trace is not None else Trace(enabled=False)
        self._columns = variant.kv_cache.protocol == "columns"
        embeddings = self._tensor("decode", "embeddings")
        chunk = self._tensor("prefill", "embeddings").shape[1]
        self._fixed_chunk = isinstance(chunk, int)
        self._has_head = "lm_head" in variant.stages
        head = variant.stages["lm_head" if self._has_head else self._chains["decode"][-1]]
        logits = find_tensor(head.outputs, "logits")
        last = variant.stages[self._chains["prefill"][-1]]
        self._chunk_gives_logits = any(tensor.name == "logits" for tensor in last.outputs)
        self.chunk_size = chunk if isinstance(chunk, int) else variant.kv_cache.chunk_size
        self.hidden_size = last_size(embeddings)
        dtype = dtype_of(embeddings.dtype)
        self._chunk = np.zeros((1, self.chunk_size, self.hidden_size), dtype)
        self._row = np.zeros((1, 1, self.hidden_size), dtype)
        self._token = np.zeros((1, 1), np.int64)
        self._past = np.zeros(1, np.int64)
        self._logits = np.zeros((1, last_size(logits)), dtype_of(logits.dtype))
        self._embed_row = self._sessions["embed_tokens"].bind({"token_ids": self._token}, {"embeddings": self._row})
        self._step = self._bind("decode", self._row)
        self._full_chunk = self._bind("prefill", self._chunk)
        self._head: BoundRun | None = None
        if self._has_head:
            self._head = self._sessions["lm_head"].bind({"hidden": self._step.hidden}, {"logits": self._logits})

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return self.cache.length

    @property
    def capacity(self) -> int:
        """Largest number of positions."""
        return self.cache.spec.capacity

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the logits speak of."""
        return int(self._logits.shape[1])

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
            self._run_head()
        logits: NDArray[Any] = self._logits[0]
        return logits

    def cancel(self) -> None:
        """Stop the run in progress, if any. May be called from any thread."""
        for session in self._sessions.values():
            session.cancel()

    def _tensor(self, chain: str, name: str) -> TensorSpec:
        """The input `name` of the first graph of a chain that has it."""
        stages = (self._variant.stages[stage] for stage in self._chains[chain])
        return next(tensor for stage in stages for tensor in stage.inputs if tensor.name == name)

    def _prefill_chunk(self, rows: Rows, count: int, total: int) -> None:
        # A graph of fixed length gives the logits of the last place, which may be padding, and some give none. Then the
        # last token goes through the decode stage instead, unless there is a head for any position.
        padded = self._fixed_chunk and count < self.chunk_size
        last = self.length + count == total
        last_by_step = last and not self._has_head and (padded or not self._chunk_gives_logits)
        with self._trace.span("prefill", position=self.length, tokens=count):
            if last_by_step:
                count -= 1
            if count:
                rows.fill(self.length, self._chunk[0, :count])
                self._chunk[0, count:] = 0
                short = count < self.chunk_size and not self._fixed_chunk
                run = self._bind("prefill", self._chunk[:, :count]) if short else self._full_chunk
                self._run(run, count)
                if last and self._has_head:
                    self._step.hidden[0, 0] = run.hidden[0, count - 1]
                    self._run_head()
            if last_by_step:
                rows.fill(total - 1, self._row[0])
                self._run(self._step, 1)

    def _bind(self, chain: str, embeddings: Array) -> _Bound:
        values = {"embeddings": embeddings, "past_length": self._past, "logits": self._logits, **self.cache.past()}
        if not self._columns:
            values |= self.cache.present()
        runs = []
        for name in self._chains[chain]:
            stage = self._variant.stages[name]
            for tensor in stage.outputs:
                if tensor.name not in values:
                    shape = [embeddings.shape[1] if isinstance(size, str) else size for size in tensor.shape]
                    values[tensor.name] = np.zeros(shape, dtype_of(tensor.dtype))
            inputs = {tensor.name: values[tensor.name] for tensor in stage.inputs}
            runs.append(self._sessions[name].bind(inputs, {tensor.name: values[tensor.name] for tensor in stage.outputs}))
        new = {name: array for name, array in values.items() if name.startswith("new_")}
        return _Bound(runs, new, values.get("hidden", self._row))

    def _run(self, bound: _Bound, count: int) -> None:
        self._past[0] = self.length
        for run in bound.runs:
            self.engine_seconds += run.run()
        if self._columns:
            self.cache.append(bound.new, count)
        else:
            self.cache.advance(count)

    def _run_head(self) -> None:
        if self._head is not None:
            self.engine_seconds += self._head.run()


@dataclass(frozen=True, slots=True)
class _Bound:
    """A chain of graphs on its buffers.

    Attributes:
        new: arrays of the "columns" protocol.
        hidden: last hidden states, for lm_head.
    """

    runs: list[BoundRun]
    new: dict[str, Array]
    hidden: Array


class _ArrayRows:
    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def fill(self, start: int, out: Array) -> None:
        out[...] = self._array[start : start + len(out)]
