"""Compile targets. One file each: a class with `check(spec, recipe)` and `lower(...) -> VariantSpec`."""

from __future__ import annotations

from pocketvlm.toolchain.registry import Registry

BACKENDS = Registry(
    "target",
    {
        "ort-cpu": "pocketvlm.toolchain.backends.ort_cpu:OrtCpu",
    },
)
