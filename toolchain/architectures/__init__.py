"""Checkpoint families. One file each: `describe(checkpoint) -> ModelSpec` and `rename(tensor name)`."""

from __future__ import annotations

from pocketvlm.toolchain.registry import Registry

ARCHITECTURES = Registry(
    "architecture",
    {
        "bluelm_v": "pocketvlm.toolchain.architectures.bluelm_v",
        "llava": "pocketvlm.toolchain.architectures.llava",
    },
)
