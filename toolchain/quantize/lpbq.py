"""LPBQ, Qualcomm's low-power block quantization: a block's scale is a small whole number times its channel's scale.

Qualcomm's NPU multiplies 4-bit weights of a channel (one output) with one float scale. Blocks inside the channel come in
through whole numbers of 1 to 15, which it multiplies as it unpacks the weights (AIMET's documentation, "Low-Power Blockwise
Quantization (LPBQ)"; QNN's encoding "blockwise expansion"). Weights are symmetric.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_STEPS = 15


def factor(scales: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Scales of blocks float32 [out, blocks] -> steps uint8 [out, blocks], 1 to 15, and channel scales float32 [out].

    The largest block of a channel gets 15 steps; the others the nearest number. Exact for scales that `project` has made.
    """
    channel = (scales.max(axis=1) / MOST_STEPS).astype(np.float32)
    steps = np.clip(np.rint(scales / channel[:, None]), 1, MOST_STEPS).astype(np.uint8)
    return steps, channel


def project(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest scales of blocks [out, blocks] that LPBQ can express; projecting twice changes nothing."""
    steps, channel = factor(scales)
    return steps * channel[:, None]
