"""`Ops` run by PyTorch in float32: the reference that every lowered stage is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from pocketvlm.errors import CheckpointError
from pocketvlm.toolchain.spec import DecoderSpec, RopeSpec

Weights = Callable[[str], Tensor]
Observer = Callable[[str, Tensor], None]


def rotary_table(rope: RopeSpec, head_dim: int, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, head_dim / 2], float32 (RoFormer; scaling as transformers' modeling_rope_utils).

    Raises:
        CheckpointError: for an unknown kind of scaling.
    """
    frequencies = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.scaling == "linear":
        frequencies = frequencies / rope.factor
    elif rope.scaling == "llama3":
        wavelength = 2 * math.pi / frequencies
        low, high = rope.original_max_positions / rope.low_freq_factor, rope.original_max_positions / rope.high_freq_factor
        smooth = (rope.original_max_positions / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        blended = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
        frequencies = torch.where(
            wavelength > low, frequencies / rope.factor, torch.where(wavelength < high, frequencies, blended)
        )
    elif rope.scaling != "none":
        raise CheckpointError(f"config.json: unknown rope scaling {rope.scaling!r}", "known: linear, llama3")
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


@dataclass(slots=True)
class EagerCache:
    """Keys (after rotary) and values of every layer, [1, kv_heads, length, head_dim] each, float32."""

    keys: list[Tensor | None] = field(default_factory=list)
    values: list[Tensor | None] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Positions that the cache holds."""
        first = self.keys[0] if self.keys else None
        return 0 if first is None else first.shape[2]


class ReadOnce:
    """Weights of the layer in work, each read once.

    Args:
        replaced: tensors that take the place of the originals; looked up at every call.
    """

    def __init__(self, weights: Weights, replaced: Mapping[str, Tensor] | None = None) -> None:
        self._weights = weights
        self._replaced: Mapping[str, Tensor] = {} if replaced is None else replaced
        self._read: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        if name in self._replaced:
            return self._replaced[name]
        if name not in self._read:
            self._read[name] = self._weights(name)
        return self._read[name]


class TorchOps:
    """Runs `Ops` and `DecoderOps` at once.

    Args:
        weights: canonical parameter name -> float32 tensor; called anew each time, so it may stream from disk.
        observe: called with (parameter prefix, input) before every linear layer, and with
            ("decoder.layers.<i>.key" / ".value", [1, kv_heads, L, head_dim]) for what enters the cache.
    """

    def __init__(self, weights: Weights, observe: Observer | None = None) -> None:
        self._weights = weights
        self._observe = observe
        self._decoder: DecoderSpec | None = None
        self._cache = EagerCache()
        self._cos = self._sin = torch.empty(0)

    def attach_cache(self, decoder: DecoderSpec, cache: EagerCache) -> None:
        """Use `cache` in the following `cached_attention` calls."""
        if not cache.keys:
            cache.keys, cache.values = [None] * decoder.layers, [None] * decoder.layers
        if self._decoder is not decoder:
            self._cos = self._sin = torch.empty(0)
        self._decoder, self._cache = decoder, cache

    def linear(self, x: Tensor, name: str, *, bias: bool) -> Tensor:
        if self._observe is not None:
            self._observe(name, x)
        return functional.linear(x, self._weights(f"{name}.weight"), self._weights(f"{name}.bias") if bias else None)

    def linears(self, x: Tensor, names: Sequence[str], *, bias: bool) -> list[Tensor]:
        return [self.linear(x, name, bias=bias) for name in names]

    def patch_convolution(self, pixels: Tensor, name: str, *, stride: int, bias: bool) -> Tensor:
        offset = self._weights(f"{name}.bias") if bias else None
        patches = functional.conv2d(pixels, self._weights(f"{name}.weight"), offset, stride=stride)
        return patches.flatten(2).transpose(1, 2)

    def add_parameter(self, x: Tensor, name: str) -> Tensor:
        return x + self._weights(name)

    def prepend_parameter(self, x: Tensor, name: str) -> Tensor:
        return torch.cat([self._weights(name).expand(x.shape[0], 1, -1), x], 1)

    def layer_norm(self, x: Tensor, name: str, *, eps: float) -> Tensor:
        return functional.layer_norm(x, (x.shape[-1],), self._weights(f"{name}.weight"), self._weights(f"{name}.bias"), eps)

    def rms_norm(self, x: Tensor, name: str, *, eps: float) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * self._weights(f"{name}.weight")

    def activation(self, x: Tensor, kind: str) -> Tensor:
        return ACTIVATIONS[kind](x)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])

    def transpose(self, x: Tensor, permutation: Sequence[int]) -> Tensor:
        return x.permute(*permutation)

    def concat(self, values: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat(list(values), axis)

    def slice(self, x: Tensor, axis: int, start: int, stop: int) -> Tensor:
        return x.narrow(axis, start, stop - start)

    def pad_end(self, x: Tensor, axis: int, count: int) -> Tensor:
        return functional.pad(x, [0, 0] * (x.dim() - 1 - axis) + [0, count])

    def attention(self, query: Tensor, key: Tensor, value: Tensor, *, heads: int) -> Tensor:
        q, k, v = (_split_heads(x, heads) for x in (query, key, value))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def embedding(self, token_ids: Tensor, name: str) -> Tensor:
        return functional.embedding(token_ids, self._weights(f"{name}.weight"))

    def cached_attention(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int) -> Tensor:
        decoder = self._decoder
        if decoder is None:
            raise RuntimeError("attach_cache comes before cached_attention")
        past_key, past_value = self._cache.keys[layer], self._cache.values[layer]
        past = 0 if past_key is None else past_key.shape[2]
        length = query.shape[1]
        q = self._rotate(_split_heads(query, decoder.heads), past)
        k = self._rotate(_split_heads(key, decoder.kv_heads), past)
        v = _split_heads(value, decoder.kv_heads)
        if self._observe is not None:
            self._observe(f"decoder.layers.{layer}.key", k)
            self._observe(f"decoder.layers.{layer}.value", v)
        if past_key is not None and past_value is not None:
            k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        self._cache.keys[layer], self._cache.values[layer] = k, v
        mask = torch.arange(past + length)[None] <= torch.arange(length)[:, None] + past
        groups = decoder.heads // decoder.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    def _rotate(self, x: Tensor, past: int) -> Tensor:
        end = past + x.shape[2]
        if end > len(self._cos) and self._decoder is not None:
            # Only as many rows as are used: the config's largest position may be millions.
            positions = max(end, 2 * len(self._cos), 512)
            self._cos, self._sin = rotary_table(self._decoder.rope, self._decoder.head_dim, positions)
        cos, sin = self._cos[past:end], self._sin[past:end]
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def last_position(self, x: Tensor) -> Tensor:
        return x[:, -1]


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, heads * d] -> [B, heads, L, d]."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": functional.silu,
    "relu": functional.relu,
}
