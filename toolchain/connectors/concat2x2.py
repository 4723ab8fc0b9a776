"""VILA's and BlueLM-V's token downsampler: 2x2 neighbouring patches are concatenated, then a two-layer MLP.

BlueLM-V-3B (arXiv 2411.10640, section 3.3): 27x27 patches are padded to 28x28 and become 14x14 = 196 tokens.
"""

from __future__ import annotations

from pocketvlm.toolchain.connectors import mlp
from pocketvlm.toolchain.ops import Ops, V
from pocketvlm.toolchain.spec import ConnectorSpec

parameters = mlp.parameters


def connect(ops: Ops[V], spec: ConnectorSpec, features: V) -> V:
    """Features [B, side * side, D] -> tokens [B, merged_side ** 2, H].

    An odd side is padded with zeros, as VILA does. A token's four patches stand in the order top left, top right,
    bottom left, bottom right.
    """
    size, merge, out = spec.input_size, spec.merge, spec.merged_side
    missing = out * merge - spec.side
    if missing:
        grid = ops.reshape(features, (-1, spec.side, spec.side, size))
        features = ops.pad_end(ops.pad_end(grid, 1, missing), 2, missing)
    blocks = ops.reshape(features, (-1, out, merge, out, merge * size))
    grouped = ops.transpose(blocks, (0, 1, 3, 2, 4))
    return mlp.connect(ops, spec, ops.reshape(grouped, (-1, out * out, merge * merge * size)))
