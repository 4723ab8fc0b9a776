"""Vision encoders. One file each: `parameters(spec)`, `patch_embed(ops, spec, pixels)`, `blocks(ops, spec, patches)`."""

from __future__ import annotations

from pocketvlm.toolchain.registry import Registry

ENCODERS = Registry(
    "vision encoder",
    {
        "siglip": "pocketvlm.toolchain.encoders.siglip",
        "clip": "pocketvlm.toolchain.encoders.clip",
    },
)
