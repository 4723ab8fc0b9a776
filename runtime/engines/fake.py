"""A scripted engine without a model, for tests of everything above it.

Its "graph" is a small JSON file:

    {"rule": "mean" | "embed" | "decoder",
     "inputs": [{"name", "dtype", "shape"}...], "outputs": [...],      shapes as in the manifest
     "add": 1.0,                    mean: added to every value
     "chain": {"5": 7},             decoder: the token after token 5 is 7
     "stall_on": [9]}               block (up to a minute) on these values until cancelled

Wrong names, types, shapes, positions or cache contents raise `FakeEngineError`: nothing is forgiven. After the idea of
LiteRT-LM's fake_llm_executor.

- mean: each row of the batch becomes its mean plus `add` everywhere.
- embed: token id t becomes a row of t's.
- decoder: reads token ids back from the embeddings and writes one column per token into each layer's cache. The next
  token is chain[last token], else a checksum of all columns so far, `checksum`: one wrong column changes the answer.
  Without an output "logits" it fills the cache alone.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pocketvlm.errors import BundleError, Cancelled
from pocketvlm.runtime.engines.protocol import Array, dtype_of, graph_name, require_contiguous

_STALL_SECONDS = 60


class FakeEngineError(AssertionError):
    """The runtime handed a graph something that it must not."""


def column(value: float) -> int:
    """What the decoder writes into the cache for an embedding of `value`: 1 to 100, so never an untouched 0."""
    return round(abs(value) * 8) % 100 + 1


def checksum(values: Sequence[float], vocabulary: int) -> int:
    """The decoder's next token after embeddings of these values, where no chain says otherwise."""
    return sum((position + 1) * column(value) for position, value in enumerate(values)) % vocabulary


class FakeEngine:
    """Opens scripts. Options and the number of threads are accepted and have no effect."""

    def open(self, path: Path, options: Mapping[str, str], threads: int | None) -> FakeSession:
        """See `Engine.open`."""
        try:
            script = json.loads(path.read_text(encoding="utf-8"))
            return FakeSession(graph_name(path), script)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{graph_name(path)}: not a script of the fake engine: {error}") from error


class FakeSession:
    """One script."""

    def __init__(self, name: str, script: dict[str, Any]) -> None:
        self._name = name
        self._rule = {"mean": self._mean, "embed": self._embed, "decoder": self._decoder}[script["rule"]]
        self._inputs: dict[str, Any] = {item["name"]: item for item in script["inputs"]}
        self._outputs: dict[str, Any] = {item["name"]: item for item in script["outputs"]}
        self._add = float(script.get("add", 0))
        self._chain = {int(key): int(value) for key, value in script.get("chain", {}).items()}
        self._stall_on = [float(value) for value in script.get("stall_on", [])]
        self._lock = threading.Condition()
        self._running = 0
        self._cancelled = False
        self._closed = False

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `EngineSession.run`."""
        with self._lock:
            self._require(not self._closed, "run after close")
            self._require(not self._running, "two runs at once")
            self._running, self._cancelled = 1, False
        try:
            sizes = self._check(inputs, self._inputs, {})
            outputs = self._rule(inputs, sizes)
            self._check(outputs, self._outputs, sizes)
            return outputs
        finally:
            with self._lock:
                self._running = 0

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> FakeBoundRun:
        """See `EngineSession.bind`."""
        require_contiguous(inputs)
        require_contiguous(outputs)
        self._require(outputs.keys() <= self._outputs.keys(), f"no outputs {sorted(outputs.keys() - self._outputs.keys())}")
        self._check(inputs, self._inputs, {})
        return FakeBoundRun(self, inputs, outputs)

    def cancel(self) -> None:
        """See `EngineSession.cancel`."""
        with self._lock:
            self._cancelled = bool(self._running)
            self._lock.notify_all()

    def close(self) -> None:
        """See `EngineSession.close`."""
        with self._lock:
            self._require(not self._running, "closed during a run")
            self._closed = True

    def _require(self, truth: bool, complaint: str) -> None:
        if not truth:
            raise FakeEngineError(f"{self._name}: {complaint}")

    def _check(self, arrays: Mapping[str, Array], specs: dict[str, Any], sizes: dict[str, int]) -> dict[str, int]:
        self._require(arrays.keys() == specs.keys(), f"expected {sorted(specs)}, found {sorted(arrays)}")
        for name, spec in specs.items():
            array = arrays[name]
            self._require(array.dtype == dtype_of(spec["dtype"]), f"{name}: expected {spec['dtype']}, found {array.dtype}")
            shown = f"{name}: expected shape {spec['shape']} with {sizes}, found {list(array.shape)}"
            self._require(array.ndim == len(spec["shape"]), shown)
            for wanted, size in zip(spec["shape"], array.shape, strict=True):
                expected = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
                self._require(size == expected, shown)
        return sizes

    def _stall(self, values: Array) -> None:
        if not np.isin(values, self._stall_on).any():
            return
        with self._lock:
            self._lock.wait_for(lambda: self._cancelled, timeout=_STALL_SECONDS)
            if self._cancelled:
                raise Cancelled(f"{self._name}: the run was cancelled")
        raise FakeEngineError(f"{self._name}: stalled and nobody cancelled")

    def _mean(self, inputs: Mapping[str, Array], sizes: dict[str, int]) -> dict[str, Array]:
        (source,) = inputs.values()
        means = source.reshape(len(source), -1).mean(axis=1, dtype=np.float64)
        self._stall(np.round(means, 3))
        results = {}
        for name, spec in self._outputs.items():
            shape = [sizes[size] if isinstance(size, str) else size for size in spec["shape"]]
            rows = (means + self._add).reshape([-1] + [1] * (len(shape) - 1))
            results[name] = np.ascontiguousarray(np.broadcast_to(rows, shape), dtype=dtype_of(spec["dtype"]))
        return results

    def _embed(self, inputs: Mapping[str, Array], sizes: dict[str, int]) -> dict[str, Array]:
        ids = inputs["token_ids"]
        spec = self._outputs["embeddings"]
        return {"embeddings": np.repeat(ids[:, :, None], spec["shape"][-1], axis=2).astype(dtype_of(spec["dtype"]))}

    def _decoder(self, inputs: Mapping[str, Array], sizes: dict[str, int]) -> dict[str, Array]:
        embeddings, past = inputs["embeddings"], int(inputs["past_length"][0])
        length = embeddings.shape[1]
        keys = [name for name in self._inputs if name.startswith("past_key.")]
        capacity = inputs[keys[0]].shape[2]
        in_place = "present_key.0" in self._outputs
        self._require(0 <= past < capacity, f"past_length {past} outside the capacity of {capacity}")
        self._require(not in_place or past + length <= capacity, f"{past} + {length} positions in a cache of {capacity}")
        self._stall(embeddings)
        values = embeddings[0].mean(axis=1, dtype=np.float64)
        written = [column(value) for value in values]
        before = [int(item) for item in inputs[keys[0]][0, 0, :past, 0]]
        self._require(0 not in before, f"past_length {past} covers columns that nobody wrote: {before}")
        outputs: dict[str, Array] = {}
        for key in keys:
            layer = key.removeprefix("past_key.")
            for name, sign in (("key", 1), ("value", -1)):
                past_array = inputs[f"past_{name}.{layer}"]
                stored = past_array[0, :, :past].astype(np.int64)
                expected = np.broadcast_to(sign * np.array(before, np.int64)[None, :, None], stored.shape)
                self._require(np.array_equal(stored, expected), f"past_{name}.{layer} does not hold the context")
                fresh = np.empty((1, past_array.shape[1], length, past_array.shape[3]), past_array.dtype)
                fresh[:] = sign * np.array(written)[None, None, :, None]
                if in_place:
                    past_array[:, :, past : past + length] = fresh
                    outputs[f"present_{name}.{layer}"] = past_array
                else:
                    outputs[f"new_{name}.{layer}"] = fresh
        if "logits" not in self._outputs:
            return outputs
        vocabulary = int(self._outputs["logits"]["shape"][-1])
        last = round(float(values[-1]))
        total = sum((position + 1) * item for position, item in enumerate([*before, *written]))
        logits = np.zeros((1, vocabulary), np.float32)
        logits[0, self._chain.get(last, total % vocabulary)] = 10
        return {"logits": logits, **outputs}


class FakeBoundRun:
    """A script over fixed arrays."""

    def __init__(self, owner: FakeSession, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        self._owner = owner
        self._inputs = dict(inputs)
        self._outputs = dict(outputs)
        for name, array in outputs.items():
            past = name.replace("present_", "past_")
            owner._require(past == name or array is inputs[past], f"{name} is not bound to the buffer of {past}")

    def run(self) -> float:
        """See `BoundRun.run`."""
        start = time.perf_counter()
        for name, result in self._owner.run(self._inputs).items():
            bound = self._outputs.get(name)
            if bound is not None and bound is not result:
                self._owner._require(bound.shape == result.shape, f"{name}: bound {bound.shape}, found {result.shape}")
                bound[...] = result
        return time.perf_counter() - start
