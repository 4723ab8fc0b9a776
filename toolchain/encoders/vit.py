"""The pre-norm transformer blocks that SigLIP and CLIP share."""

from __future__ import annotations

from collections.abc import Mapping

from pocketvlm.toolchain.ops import Ops, V
from pocketvlm.toolchain.spec import VisionSpec

Shapes = dict[str, tuple[int, ...]]


def block_parameters(spec: VisionSpec, count: int) -> Shapes:
    """Canonical names and shapes of the first `count` blocks."""
    width, inner = spec.hidden_size, spec.intermediate_size
    shapes: Shapes = {}
    for index in range(count):
        prefix = f"vision.layers.{index}"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{prefix}.{norm}.weight": (width,), f"{prefix}.{norm}.bias": (width,)}
        for name in ("q", "k", "v", "o"):
            shapes |= {f"{prefix}.{name}.weight": (width, width), f"{prefix}.{name}.bias": (width,)}
        shapes |= {f"{prefix}.up.weight": (inner, width), f"{prefix}.up.bias": (inner,)}
        shapes |= {f"{prefix}.down.weight": (width, inner), f"{prefix}.down.bias": (width,)}
    return shapes


def block(ops: Ops[V], spec: VisionSpec, x: V, index: int) -> V:
    """One block: x [B, L, D] -> [B, L, D]."""
    prefix = f"vision.layers.{index}"
    normed = ops.layer_norm(x, f"{prefix}.norm1", eps=spec.norm_eps)
    query, key, value = ops.linears(normed, [f"{prefix}.{name}" for name in ("q", "k", "v")], bias=True)
    mixed = ops.attention(query, key, value, heads=spec.heads)
    x = ops.add(x, ops.linear(mixed, f"{prefix}.o", bias=True))
    normed = ops.layer_norm(x, f"{prefix}.norm2", eps=spec.norm_eps)
    inner = ops.activation(ops.linear(normed, f"{prefix}.up", bias=True), spec.activation)
    return ops.add(x, ops.linear(inner, f"{prefix}.down", bias=True))


def finish(ops: Ops[V], spec: VisionSpec, states: Mapping[int, V]) -> V:
    """Hidden states [B, L, D] of the feature layers -> features [B, L', D * number of feature layers]."""
    chosen = [states[layer] for layer in spec.feature_layers]
    if spec.final_norm:
        chosen[-1] = ops.layer_norm(chosen[-1], "vision.final_norm", eps=spec.norm_eps)
    if spec.drop_first:
        chosen = [ops.slice(state, 1, 1, spec.sequence_length) for state in chosen]
    return chosen[0] if len(chosen) == 1 else ops.concat(chosen, 2)
