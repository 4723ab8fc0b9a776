"""The decoder's key and value buffers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pocketvlm.runtime.engines.protocol import Array, dtype_of
from pocketvlm.runtime.manifest import KvCacheSpec


class KvCache:
    """Buffers past_key.<i>, past_value.<i> of shape [1, kv_heads, capacity, head_dim], and how much of them is valid.

    Keys may be transposed: [1, kv_heads, head_dim, capacity].

    Columns from `length` on are free: they may hold leftovers, which no graph reads. Memory is touched (and so counted
    as resident) only as far as it has been written.
    """

    def __init__(self, spec: KvCacheSpec) -> None:
        shape = (1, spec.kv_heads, spec.capacity, spec.head_dim)
        dtype = dtype_of(spec.dtype)
        self.spec = spec
        self.length = 0
        key_shape = (*shape[:2], shape[3], shape[2]) if spec.keys_transposed else shape
        self._keys = [np.zeros(key_shape, dtype) for _ in range(spec.layers)]
        self._values = [np.zeros(shape, dtype) for _ in range(spec.layers)]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers at full capacity."""
        return sum(array.nbytes for array in (*self._keys, *self._values))

    def past(self) -> dict[str, Array]:
        """The buffers as graph inputs."""
        return self._named("past_key", "past_value")

    def present(self) -> dict[str, Array]:
        """The same buffers as graph outputs, for the "in_place" protocol."""
        return self._named("present_key", "present_value")

    def advance(self, count: int) -> None:
        """Count `count` columns, just written after `length`, as valid.

        Raises:
            ValueError: they do not fit.
        """
        if not 0 <= count <= self.spec.capacity - self.length:
            raise ValueError(f"{count} columns after {self.length} do not fit a cache of {self.spec.capacity}")
        self.length += count

    def append(self, columns: Mapping[str, Array], count: int) -> None:
        """Copy the first `count` columns of new_key.<i>, new_value.<i> [1, kv_heads, >= count, head_dim] and count them.

        Transposed keys come as [1, kv_heads, head_dim, >= count].

        Raises:
            ValueError: they do not fit.
        """
        start = self.length
        self.advance(count)
        for layer, (key, value) in enumerate(zip(self._keys, self._values, strict=True)):
            if self.spec.keys_transposed:
                key[..., start : start + count] = columns[f"new_key.{layer}"][..., :count]
            else:
                key[:, :, start : start + count] = columns[f"new_key.{layer}"][:, :, :count]
            value[:, :, start : start + count] = columns[f"new_value.{layer}"][:, :, :count]

    def truncate(self, length: int) -> None:
        """Keep the first `length` columns.

        Raises:
            ValueError: there are fewer.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot cut a cache of {self.length} columns to {length}")
        self.length = length

    def _named(self, key: str, value: str) -> dict[str, Array]:
        named = {f"{key}.{layer}": array for layer, array in enumerate(self._keys)}
        return named | {f"{value}.{layer}": array for layer, array in enumerate(self._values)}
