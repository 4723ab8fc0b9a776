"""SigLIP's vision tower (arXiv 2303.15343): patch convolution with bias, learned positions, no class token."""

from __future__ import annotations

from pocketvlm.toolchain.encoders import vit
from pocketvlm.toolchain.ops import Ops, V
from pocketvlm.toolchain.spec import VisionSpec

block = vit.block
finish = vit.finish


def parameters(spec: VisionSpec) -> vit.Shapes:
    """Canonical names and shapes of all parameters."""
    width = spec.hidden_size
    shapes: vit.Shapes = {
        "vision.patch.weight": (width, 3, spec.patch_size, spec.patch_size),
        "vision.patch.bias": (width,),
        "vision.position": (spec.sequence_length, width),
    } | vit.block_parameters(spec, spec.blocks)
    if spec.final_norm:
        shapes |= {"vision.final_norm.weight": (width,), "vision.final_norm.bias": (width,)}
    return shapes


def patch_embed(ops: Ops[V], spec: VisionSpec, pixels: V) -> V:
    """Pixels [B, 3, S, S] -> patch embeddings [B, N, D], positions included."""
    patches = ops.patch_convolution(pixels, "vision.patch", stride=spec.patch_size, bias=True)
    return ops.add_parameter(patches, "vision.position")
