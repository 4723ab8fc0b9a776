"""The Llama decoder (arXiv 2302.13971, with grouped-query attention, 2305.13245)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketvlm.errors import CheckpointError
from pocketvlm.toolchain.hf_config import read_section
from pocketvlm.toolchain.ops import DecoderOps, V
from pocketvlm.toolchain.spec import DecoderSpec, RopeSpec


def read(config: Mapping[str, Any]) -> DecoderSpec:
    """DecoderSpec of a Hugging Face Llama text config (the parsed `text_config`, or a whole text-only config).

    Raises:
        CheckpointError: a value is missing, of the wrong type or of an unknown kind.
    """
    try:
        return _spec(read_section({"model_type": "llama", **config}))
    except (CheckpointError, ImportError):
        raise
    except Exception as error:  # transformers raises many kinds for a bad config, and lets many bad values pass
        raise CheckpointError(
            f"config.json: text_config cannot be read: {type(error).__name__}: {error}", "the config is damaged"
        ) from error


def _spec(full: Any) -> DecoderSpec:
    from optimum.utils import NormalizedConfigManager

    normal = NormalizedConfigManager.get_normalized_config_class(full.model_type)(full)
    heads = int(normal.num_attention_heads)
    hidden = int(normal.hidden_size)
    kv_heads, head_dim = getattr(full, "num_key_value_heads", None), getattr(full, "head_dim", None)
    if not heads or (hidden % heads and head_dim is None):
        raise CheckpointError(f"config.json: {heads} heads do not divide the hidden size {hidden}")
    return DecoderSpec(
        kind="llama",
        hidden_size=hidden,
        layers=int(normal.num_layers),
        heads=heads,
        kv_heads=heads if kv_heads is None else int(kv_heads),
        head_dim=hidden // heads if head_dim is None else int(head_dim),
        intermediate_size=int(full.intermediate_size),
        vocab_size=int(normal.vocab_size),
        norm_eps=float(full.rms_norm_eps),
        rope=_rope(full),
        max_positions=int(full.max_position_embeddings),
        activation=str(full.hidden_act),
        tie_embeddings=bool(full.tie_word_embeddings),
        attention_bias=bool(getattr(full, "attention_bias", False)),
        output_bias=bool(getattr(full, "attention_bias", False)),
        mlp_bias=bool(getattr(full, "mlp_bias", False)),
    )


def _rope(config: Any) -> RopeSpec:
    values = dict(getattr(config, "rope_parameters", None) or {})
    kind = values.get("rope_type", "default")
    theta = float(values.get("rope_theta", 10000.0))
    if kind == "default":
        return RopeSpec(theta)
    if kind == "linear":
        return RopeSpec(theta, "linear", factor=float(values["factor"]))
    if kind == "llama3":
        return RopeSpec(
            theta,
            "llama3",
            factor=float(values["factor"]),
            low_freq_factor=float(values["low_freq_factor"]),
            high_freq_factor=float(values["high_freq_factor"]),
            original_max_positions=int(values["original_max_position_embeddings"]),
        )
    raise CheckpointError(f"config.json: rope type {kind!r} is not supported", "supported: default, linear, llama3")


def parameters(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of all parameters."""
    width, inner = spec.hidden_size, spec.intermediate_size
    query, key = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "decoder.embed.weight": (spec.vocab_size, width),
        "decoder.norm.weight": (width,),
    }
    for index in range(spec.layers):
        prefix = f"decoder.layers.{index}"
        shapes |= {f"{prefix}.norm1.weight": (width,), f"{prefix}.norm2.weight": (width,)}
        linears = {"q": (query, width), "k": (key, width), "v": (key, width), "o": (width, query)}
        linears |= {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        biased = {"q", "k", "v"} if spec.attention_bias else set()
        biased |= {"o"} if spec.output_bias else set()
        biased |= {"gate", "up", "down"} if spec.mlp_bias else set()
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"{prefix}.{name}.bias": linears[name][:1] for name in sorted(biased)}
    if not spec.tie_embeddings:
        shapes["decoder.lm_head.weight"] = (spec.vocab_size, width)
    return shapes


def layer(ops: DecoderOps[V], spec: DecoderSpec, x: V, index: int) -> V:
    """One decoder layer: x [1, L, H] -> [1, L, H]."""
    prefix = f"decoder.layers.{index}"
    normed = ops.rms_norm(x, f"{prefix}.norm1", eps=spec.norm_eps)
    query, key, value = ops.linears(normed, [f"{prefix}.{name}" for name in ("q", "k", "v")], bias=spec.attention_bias)
    mixed = ops.cached_attention(query, key, value, layer=index)
    x = ops.add(x, ops.linear(mixed, f"{prefix}.o", bias=spec.output_bias))
    normed = ops.rms_norm(x, f"{prefix}.norm2", eps=spec.norm_eps)
    gate, up = ops.linears(normed, [f"{prefix}.{name}" for name in ("gate", "up")], bias=spec.mlp_bias)
    inner = ops.multiply(ops.activation(gate, spec.activation), up)
    return ops.add(x, ops.linear(inner, f"{prefix}.down", bias=spec.mlp_bias))


def logits(ops: DecoderOps[V], spec: DecoderSpec, x: V, *, all_positions: bool = False) -> V:
    """The last layer's x [1, L, H] -> logits of the last position [1, V] (or of all, [1, L, V])."""
    if not all_positions:
        x = ops.last_position(x)
    normed = ops.rms_norm(x, "decoder.norm", eps=spec.norm_eps)
    return ops.linear(normed, spec.output_projection, bias=False)
