"""GPTQ (arXiv 2210.17323) for the decoder's linear layers, one layer in memory at a time.

Layer by layer, and inside a layer group by group in the order of the computation (query/key/value, output, gate/up,
down), each matrix sees the inputs that the already quantized matrices before it produce. Blocks keep the layout of
`quantize.block`; columns are visited in the order of falling Hessian diagonal ("activation order"), and each block's
range is searched to minimise the Hessian-weighted rounding error before it is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pocketvlm.errors import CheckpointError
from pocketvlm.toolchain.quantize.block import BlockWeights, block_ranges, encode
from pocketvlm.toolchain.quantize.scheme import WeightScheme
from pocketvlm.toolchain.torch_ops import EagerCache, ReadOnce, TorchOps, Weights

if TYPE_CHECKING:
    from pocketvlm.toolchain.spec import DecoderSpec

GROUPS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
_SHRINK_STEPS = 20
_SHRINK = 0.03
_DAMPING = 0.01
_COLUMNS_AT_ONCE = 128


class _InputsKnownError(Exception):
    """Ends a pass through a layer once the wanted inputs are known."""


def quantize_decoder(
    spec: DecoderSpec,
    layer: Callable[..., Tensor],
    weights: Weights,
    sequences: Sequence[Tensor],
    scheme: WeightScheme,
    advance: Callable[[int], None],
) -> dict[str, BlockWeights]:
    """Quantize every linear layer inside the decoder's layers.

    Args:
        layer: (ops, spec, x, index) -> x, one decoder layer.
        sequences: calibration embeddings, float32 [batch, length, H] each; not changed.
        advance: called with 1 after every layer.

    Returns:
        Block weights by canonical prefix ("decoder.layers.0.q").
    """
    done: dict[str, BlockWeights] = {}
    hidden = [sequence.clone() for sequence in sequences]
    with torch.inference_mode():
        for index in range(spec.layers):
            finished: dict[str, Tensor] = {}
            current = ReadOnce(weights, finished)
            for group in GROUPS:
                names = [f"decoder.layers.{index}.{name}" for name in group]
                hessian = _hessian(spec, layer, current, hidden, index, names[0])
                for name in names:
                    blocks = quantize_matrix(current(f"{name}.weight"), hessian, scheme)
                    done[name] = blocks
                    finished[f"{name}.weight"] = torch.from_numpy(blocks.dequantize())
            for number, x in enumerate(hidden):
                hidden[number] = layer(_ops(spec, current, None), spec, x, index)
            advance(1)
    return done


def _ops(spec: DecoderSpec, weights: Weights, observe: Callable[[str, Tensor], None] | None) -> TorchOps:
    ops = TorchOps(weights, observe)
    ops.attach_cache(spec, EagerCache())
    return ops


def _hessian(
    spec: DecoderSpec, layer: Callable[..., Tensor], weights: Weights, hidden: Sequence[Tensor], index: int, wanted: str
) -> Tensor:
    """Mean of x x^T over all inputs x of the linear layer `wanted`, float32 [in, in]."""
    total = torch.zeros(0)
    count = 0

    def observe(name: str, x: Tensor) -> None:
        nonlocal total, count
        if name != wanted:
            return
        rows = x.reshape(-1, x.shape[-1])
        product = rows.T @ rows
        total = product if count == 0 else total + product
        count += rows.shape[0]
        raise _InputsKnownError

    for x in hidden:
        try:
            layer(_ops(spec, weights, observe), spec, x, index)
        except _InputsKnownError:
            continue
    return total / count


def quantize_matrix(weight: Tensor, hessian: Tensor, scheme: WeightScheme) -> BlockWeights:
    """Quantize float32 [out, in] so that the error on inputs with this Hessian [in, in] is small."""
    rows, inputs = weight.shape
    bits, block_size = scheme.bits, scheme.block_of(inputs)
    padded = -(-inputs // block_size) * block_size
    work = weight.clone()
    diagonal = hessian.diagonal().clone()
    dead = diagonal <= 0
    importance = torch.nn.functional.pad(diagonal, (0, padded - inputs)).reshape(-1, block_size)
    blocks = torch.nn.functional.pad(work, (0, padded - inputs)).reshape(rows, -1, block_size)
    scale, zero = search_ranges(blocks, importance, bits, symmetric=scheme.symmetric)
    scale = scheme.representable(scale)
    order = torch.argsort(diagonal, descending=True, stable=True)
    block_of = (order // block_size).tolist()
    inverse = _inverse_factor(hessian, dead, order)
    work = work[:, order]
    codes = torch.zeros(rows, padded)
    for start in range(0, inputs, _COLUMNS_AT_ONCE):
        stop = min(start + _COLUMNS_AT_ONCE, inputs)
        part = work[:, start:stop].clone()
        errors = torch.zeros_like(part)
        factor = inverse[start:stop, start:stop]
        for column in range(stop - start):
            block = block_of[start + column]
            s, z = scale[:, block], zero[:, block]
            code = encode(part[:, column], s, z, bits)
            codes[:, order[start + column]] = code
            error = (part[:, column] - (code - z) * s) / factor[column, column]
            part[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
            errors[:, column] = error
        work[:, stop:] -= errors @ inverse[start:stop, stop:]
    if padded != inputs:
        codes[:, inputs:] = zero[:, -1:]
    to_bytes = [value.to(torch.uint8).numpy() for value in (codes, zero)]
    return BlockWeights(to_bytes[0], scale.numpy().astype(np.float32), to_bytes[1], bits, block_size, inputs)


def search_ranges(blocks: Tensor, importance: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero [out, blocks] with the least weighted error, over ranges shrunk by up to 57%.

    Args:
        blocks: weights [out, blocks, block_size].
        importance: Hessian diagonal [blocks, block_size].
    """
    best_error: Tensor | None = None
    best_scale = best_zero = torch.empty(0)
    for step in range(_SHRINK_STEPS):
        scale, zero = block_ranges(blocks * (1 - _SHRINK * step), bits, symmetric=symmetric)
        code = encode(blocks, scale[..., None], zero[..., None], bits)
        error = (((code - zero[..., None]) * scale[..., None] - blocks).square() * importance).sum(-1)
        if best_error is None:
            best_error, best_scale, best_zero = error, scale, zero
        else:
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _inverse_factor(hessian: Tensor, dead: Tensor, order: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped inverse Hessian, rows and columns in `order`."""
    work = hessian[order][:, order].clone()
    diagonal = work.diagonal()
    diagonal[dead[order]] = 1.0
    damping = _DAMPING * diagonal.mean()
    for _ in range(6):
        damped = work.clone()
        damped.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
            return upper
        damping = damping * 10
    raise CheckpointError(
        "GPTQ: the statistics of a layer's calibration inputs cannot be inverted: its activations overflow",
        "set decoder_weights.method to rtn in the recipe, or check the checkpoint",
    )
