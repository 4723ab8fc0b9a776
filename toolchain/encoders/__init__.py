"""Vision encoders.

One file each: `parameters(spec)`, `patch_embed(ops, spec, pixels)`, `block(ops, spec, x, index)`, `finish(ops, spec, states)`.
"""

from __future__ import annotations

from pocketvlm.toolchain.ops import Ops, V
from pocketvlm.toolchain.registry import Registry
from pocketvlm.toolchain.spec import VisionSpec

ENCODERS = Registry(
    "vision encoder",
    {
        "siglip": "pocketvlm.toolchain.encoders.siglip",
        "clip": "pocketvlm.toolchain.encoders.clip",
    },
)


def blocks(ops: Ops[V], spec: VisionSpec, patches: V) -> V:
    """All blocks of an encoder: patch embeddings [B, L, D] -> features [B, L', D * number of feature layers]."""
    encoder = ENCODERS.load(spec.kind)
    states = {0: patches}
    x = patches
    for index in range(spec.blocks):
        x = encoder.block(ops, spec, x, index)
        states[index + 1] = x
    features: V = encoder.finish(ops, spec, {layer: states[layer] for layer in spec.feature_layers})
    return features
