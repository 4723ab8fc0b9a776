"""Which 4-bit numbers a target's kernels take for the decoder's matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketvlm.toolchain.quantize import lpbq
from pocketvlm.toolchain.quantize.block import BlockWeights, encode, round_to_nearest

Granularity = Literal["block", "channel", "lpbq"]
# A signed 4-bit step beside each block, and a float32 scale per channel.
_LPBQ_STEP_BITS = 4


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How a matrix [out, in] shares its scales. The result is always `BlockWeights`.

    Attributes:
        granularity: "block": a free float32 scale for every `block_size` inputs; "channel": one for a whole row; "lpbq":
            one for every block, a whole multiple of the row's (see `quantize.lpbq`).
        block_size: consecutive inputs that share a scale; has no meaning for "channel".
        symmetric: the zero point is the middle code. "channel" and "lpbq" know nothing else.
        bits: width of a code.
    """

    granularity: Granularity = "block"
    block_size: int = 32
    symmetric: bool = False
    bits: int = 4

    def __post_init__(self) -> None:
        if self.granularity != "block" and not self.symmetric:
            raise ValueError(f"weights per {self.granularity} are symmetric")

    def __str__(self) -> str:
        """For people: "INT4, LPBQ in blocks of 32"."""
        shared = {"block": "", "channel": "one scale a channel", "lpbq": "LPBQ "}[self.granularity]
        return f"INT{self.bits}, {shared}" + ("" if self.granularity == "channel" else f"in blocks of {self.block_size}")

    def block_of(self, inputs: int) -> int:
        """Inputs that share a scale in a matrix with `inputs` of them."""
        return inputs if self.granularity == "channel" else self.block_size

    def representable(self, scales: Tensor) -> Tensor:
        """The nearest scales float32 [out, blocks] that the scheme can express; twice is the same as once."""
        if self.granularity != "lpbq":
            return scales
        return torch.from_numpy(lpbq.project(scales.numpy().astype(np.float32)))

    def round(self, weight: Tensor) -> BlockWeights:
        """Float32 [out, in] by rounding to nearest."""
        size = self.block_of(weight.shape[1])
        found = round_to_nearest(weight, self.bits, size, symmetric=self.symmetric)
        if self.granularity != "lpbq":
            return found
        scales = self.representable(torch.from_numpy(found.scales))
        return replace(found, codes=self._codes(weight, scales, found.zeros), scales=scales.numpy())

    def _codes(self, weight: Tensor, scales: Tensor, zeros: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rows, blocks = scales.shape
        padded = torch.nn.functional.pad(weight, (0, blocks * self.block_size - weight.shape[1]))
        values = padded.reshape(rows, blocks, self.block_size)
        codes = encode(values, scales[..., None], torch.from_numpy(zeros).float()[..., None], self.bits)
        return codes.to(torch.uint8).reshape(rows, -1).numpy()

    def bits_per_weight(self, inputs: int) -> float:
        """What a weight of a matrix [out, inputs] takes: codes of whole blocks, scales and zero points."""
        size = self.block_of(inputs)
        blocks = -(-inputs // size)
        codes = blocks * size * self.bits
        scales = blocks * _LPBQ_STEP_BITS + 32 if self.granularity == "lpbq" else 32 * blocks
        zeros = 0 if self.symmetric else self.bits * blocks
        return (codes + scales + zeros) / inputs
