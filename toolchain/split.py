"""ModelSpec -> stages: the parts that a bundle is cut into, with their inputs and outputs (docs/bundle.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pocketvlm.runtime.manifest import KvCacheSpec, TensorSpec
from pocketvlm.toolchain import decoders, encoders
from pocketvlm.toolchain.connectors import CONNECTORS
from pocketvlm.toolchain.encoders import ENCODERS
from pocketvlm.toolchain.spec import ModelSpec

Build = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage with a single input and a single output of its own (the cache comes on top for the decoder).

    Attributes:
        build: (ops, input value) -> output value; `ops` is any `Ops`.
        part: "vision" or "decoder": which weights and precision it belongs to.
    """

    name: str
    input: TensorSpec
    output: TensorSpec
    build: Build
    part: str


def vision_stages(spec: ModelSpec, batch: int | str) -> list[Stage]:
    """patch_embed, vision_encoder and connector for a fixed (int) or varying (name) batch of tiles."""
    encoder, connector = ENCODERS.load(spec.vision.kind), CONNECTORS.load(spec.connector.kind)
    vision = spec.vision
    pixels = TensorSpec("pixels", "float32", (batch, 3, vision.image_size, vision.image_size))
    patches = TensorSpec("patches", "float32", (batch, vision.sequence_length, vision.hidden_size))
    features = TensorSpec("features", "float32", (batch, vision.feature_count, vision.feature_size))
    count = spec.image_tokens.rows * spec.image_tokens.cols
    tokens = TensorSpec("tokens", "float32", (batch, count, spec.decoder.hidden_size))
    return [
        Stage("patch_embed", pixels, patches, lambda ops, x: encoder.patch_embed(ops, vision, x), "vision"),
        Stage("vision_encoder", patches, features, lambda ops, x: encoders.blocks(ops, vision, x), "vision"),
        Stage("connector", features, tokens, lambda ops, x: connector.connect(ops, spec.connector, x), "vision"),
    ]


def embed_stage(spec: ModelSpec) -> Stage:
    """embed_tokens: ids [1, L] -> embeddings [1, L, H]."""
    return Stage(
        "embed_tokens",
        TensorSpec("token_ids", "int64", (1, "length")),
        TensorSpec("embeddings", "float32", (1, "length", spec.decoder.hidden_size)),
        lambda ops, x: ops.embedding(x, "decoder.embed"),
        "decoder",
    )


def decoder_stage(spec: ModelSpec) -> Stage:
    """The decoder: embeddings [1, L, H] and the cache -> logits [1, V] of the last position."""
    return Stage(
        "decoder",
        TensorSpec("embeddings", "float32", (1, "length", spec.decoder.hidden_size)),
        TensorSpec("logits", "float32", (1, spec.decoder.vocab_size)),
        lambda ops, x: decoders.decode(ops, spec.decoder, x),
        "decoder",
    )


def write_cache(ops: Any, spec: ModelSpec, embeddings: Any) -> None:
    """The decoder's layers alone, for a prefill graph that only fills the cache: decode then takes the last token."""
    decoders.layers(ops, spec.decoder, embeddings)


def cache_tensors(cache: KvCacheSpec, prefix: str) -> tuple[TensorSpec, ...]:
    """`<prefix>_key.<i>` and `<prefix>_value.<i>` of every layer, with a varying capacity."""
    shape = (1, cache.kv_heads, "capacity", cache.head_dim)
    return tuple(
        TensorSpec(f"{prefix}_{kind}.{layer}", cache.dtype, shape) for layer in range(cache.layers) for kind in ("key", "value")
    )
