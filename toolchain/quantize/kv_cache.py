"""Scales of the INT8 key-value cache, found on real conversations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketvlm.toolchain.spec import DecoderSpec

_SMALLEST = 1e-8


@dataclass(frozen=True, slots=True)
class KvScales:
    """Per layer, float32 [kv_heads, head_dim] for keys (after rotary) and for values: float = int8 * scale."""

    keys: tuple[NDArray[np.float32], ...]
    values: tuple[NDArray[np.float32], ...]


class KvRangeObserver:
    """Collects the largest magnitude per channel of what enters the cache. Pass it to TorchOps as `observe`."""

    def __init__(self, decoder: DecoderSpec) -> None:
        self._decoder = decoder
        self._largest: dict[str, Tensor] = {}

    def __call__(self, name: str, x: Tensor) -> None:
        if not name.endswith((".key", ".value")):
            return
        largest = x.abs().amax(dim=(0, 2))
        known = self._largest.get(name)
        self._largest[name] = largest if known is None else torch.maximum(known, largest)

    def scales(self, granularity: str) -> KvScales:
        """Scales that map the largest value seen to 127, per channel or ("per_tensor") per layer."""
        return KvScales(self._collect("key", granularity), self._collect("value", granularity))

    def _collect(self, kind: str, granularity: str) -> tuple[NDArray[np.float32], ...]:
        found = []
        for layer in range(self._decoder.layers):
            largest = self._largest[f"decoder.layers.{layer}.{kind}"]
            if granularity == "per_tensor":
                largest = largest.amax().expand_as(largest)
            found.append((largest.clamp_min(_SMALLEST) / 127.0).to(torch.float32).contiguous().numpy())
        return tuple(found)
