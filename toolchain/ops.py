"""The operations that encoders, connectors and decoders are written in.

Every component is one function over an `Ops`. PyTorch runs it at once (`TorchOps`: the golden reference); a backend
writes it down as a graph (`OrtOps`). So a new component is written once, and what is exported is what was checked.
Values are opaque to the component. Shapes are given per operation; B is the batch, L the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

V = TypeVar("V")


class Ops(Protocol[V]):
    """Operations of the vision stages. `name` is a canonical parameter prefix, without ".weight"."""

    def linear(self, x: V, name: str, *, bias: bool) -> V:
        """x [..., in] @ weight [out, in] transposed, plus bias [out]."""

    def linears(self, x: V, names: Sequence[str], *, bias: bool) -> list[V]:
        """Several linear layers on the same input; a backend may fuse them."""

    def patch_convolution(self, pixels: V, name: str, *, stride: int, bias: bool) -> V:
        """Pixels [B, 3, S, S] -> patches [B, (S / stride)**2, D], row by row."""

    def add_parameter(self, x: V, name: str) -> V:
        """x [B, L, D] + parameter [L, D]."""

    def prepend_parameter(self, x: V, name: str) -> V:
        """Parameter [D] put before x [B, L, D] -> [B, L + 1, D]."""

    def layer_norm(self, x: V, name: str, *, eps: float) -> V:
        """Over the last dimension of x [..., D], times weight [D], plus bias [D]."""

    def rms_norm(self, x: V, name: str, *, eps: float) -> V:
        """x [..., D] over the root of its mean square in the last dimension, times weight [D]."""

    def activation(self, x: V, kind: str) -> V:
        """kind: gelu, gelu_pytorch_tanh, quick_gelu, silu or relu."""

    def add(self, a: V, b: V) -> V:
        """a + b, broadcast as numpy does."""

    def multiply(self, a: V, b: V) -> V:
        """a * b, element by element, broadcast as numpy does."""

    def reshape(self, x: V, shape: Sequence[int]) -> V:
        """0 keeps a dimension, -1 is inferred."""

    def transpose(self, x: V, permutation: Sequence[int]) -> V:
        """Dimension i of the result is dimension permutation[i] of x."""

    def concat(self, values: Sequence[V], axis: int) -> V:
        """The values one after the other along `axis`."""

    def slice(self, x: V, axis: int, start: int, stop: int) -> V:
        """Elements start to stop - 1 of `axis`."""

    def pad_end(self, x: V, axis: int, count: int) -> V:
        """Append `count` zeros along `axis`."""

    def attention(self, query: V, key: V, value: V, *, heads: int) -> V:
        """Unmasked attention, all [B, L, heads * d] -> [B, L, heads * d], scaled by 1 / sqrt(d)."""


class DecoderOps(Ops[V], Protocol[V]):
    """Operations of the language model, with a key-value cache behind them."""

    def embedding(self, token_ids: V, name: str) -> V:
        """Token ids [1, L] -> rows of the table [1, L, H]."""

    def cached_attention(self, query: V, key: V, value: V, *, layer: int) -> V:
        """Rotary positions, cache update and causal attention of one layer.

        query [1, L, heads * d], key and value [1, L, kv_heads * d] -> [1, L, heads * d].
        """

    def last_position(self, x: V) -> V:
        """x [1, L, H] -> [1, H] of the last position."""
