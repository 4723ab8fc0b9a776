"""LLaVA-1.5's projector: two linear layers with an activation between (arXiv 2310.03744)."""

from __future__ import annotations

from pocketvlm.toolchain.ops import Ops, V
from pocketvlm.toolchain.spec import ConnectorSpec


def parameters(spec: ConnectorSpec) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of all parameters."""
    shapes: dict[str, tuple[int, ...]] = {
        "connector.linear_1.weight": (spec.hidden_size, spec.input_size * spec.merge**2),
        "connector.linear_2.weight": (spec.output_size, spec.hidden_size),
    }
    if spec.bias:
        shapes |= {"connector.linear_1.bias": (spec.hidden_size,), "connector.linear_2.bias": (spec.output_size,)}
    return shapes


def connect(ops: Ops[V], spec: ConnectorSpec, features: V) -> V:
    """Features [B, N, D] -> tokens [B, N, H]."""
    hidden = ops.activation(ops.linear(features, "connector.linear_1", bias=spec.bias), spec.activation)
    return ops.linear(hidden, "connector.linear_2", bias=spec.bias)
