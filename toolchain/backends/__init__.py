"""Compile targets. One file or folder each: a class, made with the target's name, with `check` and `lower` (see `Backend`)."""

from __future__ import annotations

from pocketvlm.toolchain.backends.qnn.socs import SOCS
from pocketvlm.toolchain.registry import Registry


def family(target: str) -> str:
    """What a target's siblings share: "qnn" for "qnn:SM8750"."""
    return target.partition(":")[0]


BACKENDS = Registry(
    "target",
    {
        "ort-cpu": "pocketvlm.toolchain.backends.ort_cpu:OrtCpu",
        **{f"qnn:{soc}": "pocketvlm.toolchain.backends.qnn.backend:Qnn" for soc in SOCS},
    },
)
