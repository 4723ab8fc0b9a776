"""Decoders. One file each: `read(config)`, `parameters(spec)`, `layer(ops, spec, x, index)`, `logits(ops, spec, x)`."""

from __future__ import annotations

from typing import Any

from pocketvlm.toolchain.ops import DecoderOps, V
from pocketvlm.toolchain.registry import Registry
from pocketvlm.toolchain.spec import DecoderSpec

DECODERS = Registry("decoder", {"llama": "pocketvlm.toolchain.decoders.llama"})


def layers(ops: DecoderOps[V], spec: DecoderSpec, embeddings: V) -> V:
    """All layers of a decoder: embeddings [1, L, H] -> [1, L, H]."""
    decoder = DECODERS.load(spec.kind)
    x = embeddings
    for index in range(spec.layers):
        x = decoder.layer(ops, spec, x, index)
    return x


def decode(ops: DecoderOps[V], spec: DecoderSpec, embeddings: V, *, all_positions: bool = False) -> V:
    """A whole decoder: embeddings [1, L, H] -> logits of the last position [1, V] (or of all, [1, L, V])."""
    found: Any = DECODERS.load(spec.kind).logits(ops, spec, layers(ops, spec, embeddings), all_positions=all_positions)
    return found  # type: ignore[no-any-return]
