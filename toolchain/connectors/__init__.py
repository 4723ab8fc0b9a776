"""Connectors. One file each: `parameters(spec)` and `connect(ops, spec, features)`."""

from __future__ import annotations

from pocketvlm.toolchain.registry import Registry

CONNECTORS = Registry(
    "connector",
    {
        "mlp": "pocketvlm.toolchain.connectors.mlp",
        "concat2x2": "pocketvlm.toolchain.connectors.concat2x2",
    },
)
