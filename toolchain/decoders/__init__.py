"""Decoders. One file each: `read(config)`, `parameters(spec)`, `decode(ops, spec, embeddings)`."""

from __future__ import annotations

from pocketvlm.toolchain.registry import Registry

DECODERS = Registry("decoder", {"llama": "pocketvlm.toolchain.decoders.llama"})
