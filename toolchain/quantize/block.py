"""Block-wise weight quantization, in the layout that ONNX Runtime's MatMulNBits and GatherBlockQuantized read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """A matrix [out, in] in blocks along its input axis: value = (code - zero) * scale.

    Attributes:
        codes: uint8 [out, in padded to whole blocks], 0 .. 2**bits - 1.
        scales: float32 [out, blocks].
        zeros: uint8 [out, blocks].
        inputs: the true input size.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8]
    bits: int
    block_size: int
    inputs: int

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is the middle code, which the kernels take for granted when none is given."""
        return bool((self.zeros == 1 << (self.bits - 1)).all())

    def dequantize(self) -> NDArray[np.float32]:
        """float32 [out, in]."""
        rows, blocks = self.scales.shape
        codes = self.codes.reshape(rows, blocks, self.block_size).astype(np.float32)
        values = (codes - self.zeros[..., None]) * self.scales[..., None]
        return values.reshape(rows, -1)[:, : self.inputs].astype(np.float32)

    def packed(self) -> NDArray[np.uint8]:
        """Codes as MatMulNBits' B [out, blocks, block_size * bits / 8]; two 4-bit codes per byte, the first one low."""
        rows, blocks = self.scales.shape
        codes = self.codes.reshape(rows, blocks, self.block_size)
        return codes if self.bits == 8 else _pack_pairs(codes)

    def packed_zeros(self) -> NDArray[np.uint8]:
        """Zero points [out, bytes]; two 4-bit ones per byte, an odd last one padded."""
        if self.bits == 8:
            return self.zeros
        if self.zeros.shape[1] % 2:
            return _pack_pairs(np.pad(self.zeros, ((0, 0), (0, 1))))
        return _pack_pairs(self.zeros)


def _pack_pairs(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.bitwise_or(codes[..., 0::2], np.left_shift(codes[..., 1::2], np.uint8(4)), dtype=np.uint8)


def concatenate(parts: list[BlockWeights]) -> BlockWeights:
    """Matrices with the same input, one below the other."""
    first = parts[0]
    return BlockWeights(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.zeros for part in parts]),
        first.bits,
        first.block_size,
        first.inputs,
    )


def round_to_nearest(weight: Tensor, bits: int, block_size: int, *, symmetric: bool = False) -> BlockWeights:
    """Quantize float32 [out, in] by rounding each block to its own range.

    Asymmetric blocks span [min(0, lowest), max(0, highest)]; symmetric ones have their zero in the middle.
    """
    rows, inputs = weight.shape
    padded = -(-inputs // block_size) * block_size
    codes = np.empty((rows, padded), np.uint8)
    scales = np.empty((rows, padded // block_size), np.float32)
    zeros = np.empty((rows, padded // block_size), np.uint8)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = weight[start : start + _ROWS_AT_ONCE]
        if padded != inputs:
            part = torch.nn.functional.pad(part, (0, padded - inputs))
        blocks = part.reshape(part.shape[0], -1, block_size)
        scale, zero = block_ranges(blocks, bits, symmetric=symmetric)
        code = encode(blocks, scale[..., None], zero[..., None], bits)
        stop = start + part.shape[0]
        codes[start:stop] = code.to(torch.uint8).reshape(part.shape[0], -1).numpy()
        scales[start:stop] = scale.numpy()
        zeros[start:stop] = zero.to(torch.uint8).numpy()
    return BlockWeights(codes, scales, zeros, bits, block_size, inputs)


def block_ranges(blocks: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point [..., blocks] of blocks [..., blocks, block_size].

    Any scale fits an all-zero block; it gets the least one of its row, because LPBQ's scales are fractions of the largest.
    """
    top = 2**bits - 1
    if symmetric:
        middle = 2 ** (bits - 1)
        scale = blocks.abs().amax(-1) / (middle - 1)
        zero = torch.full_like(scale, float(middle))
    else:
        low, high = blocks.amin(-1).clamp_max(0), blocks.amax(-1).clamp_min(0)
        scale = (high - low) / top
        zero = (-low / scale.clamp_min(1e-30)).round().clamp(0, top)
    used = scale > 1e-30
    least = torch.where(used, scale, torch.inf).amin(-1, keepdim=True)
    return torch.where(used, scale, torch.where(least.isfinite(), least, 1.0)), zero


def encode(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Nearest codes, as float."""
    return (values / scale + zero).round().clamp(0, 2**bits - 1)


def per_channel_int8(weight: Tensor) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """float32 [out, in] -> int8 [in, out] and scales [out], symmetric, for DynamicQuantizeMatMul."""
    scale = (weight.abs().amax(1) / 127.0).clamp_min(1e-12)
    codes = (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return np.ascontiguousarray(codes.T.numpy()), scale.numpy()
