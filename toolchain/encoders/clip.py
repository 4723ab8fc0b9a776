"""CLIP's vision tower (arXiv 2103.00020): patch convolution without bias, class token, layer norm before the blocks."""

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
        "vision.class_token": (width,),
        "vision.position": (spec.sequence_length, width),
        "vision.pre_norm.weight": (width,),
        "vision.pre_norm.bias": (width,),
    }
    return shapes | vit.block_parameters(spec, spec.blocks)


def patch_embed(ops: Ops[V], spec: VisionSpec, pixels: V) -> V:
    """Pixels [B, 3, S, S] -> embeddings [B, N + 1, D]: class token first, positions added, normalised."""
    patches = ops.patch_convolution(pixels, "vision.patch", stride=spec.patch_size, bias=False)
    sequence = ops.add_parameter(ops.prepend_parameter(patches, "vision.class_token"), "vision.position")
    return ops.layer_norm(sequence, "vision.pre_norm", eps=spec.norm_eps)
