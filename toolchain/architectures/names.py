"""Renaming rules that several checkpoint families share."""

from __future__ import annotations

import re

_VIT = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "o",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
}
_LLAMA = {
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
_VISION_TOP = {
    "embeddings.patch_embedding.weight": "vision.patch.weight",
    "embeddings.patch_embedding.bias": "vision.patch.bias",
    "embeddings.position_embedding.weight": "vision.position",
    "embeddings.class_embedding": "vision.class_token",
    "pre_layrnorm.weight": "vision.pre_norm.weight",
    "pre_layrnorm.bias": "vision.pre_norm.bias",
    "post_layernorm.weight": "vision.final_norm.weight",
    "post_layernorm.bias": "vision.final_norm.bias",
}
_BLOCK = re.compile(r"(?:encoder\.)?layers\.(\d+)\.(.+)\.(weight|bias)\Z")


def vision_tower(name: str) -> str | None:
    """Name inside a CLIP or SigLIP tower -> canonical name; None for the pooling head and position ids."""
    name = name.removeprefix("vision_model.")
    if name.startswith("head.") or name == "embeddings.position_ids":
        return None
    if name in _VISION_TOP:
        return _VISION_TOP[name]
    match = _BLOCK.match(name)
    if match and match[2] in _VIT:
        return f"vision.layers.{match[1]}.{_VIT[match[2]]}.{match[3]}"
    return f"vision.{name}"


def llama(name: str) -> str | None:
    """Name inside a Llama model -> canonical name; None for stored rotary frequencies."""
    name = name.removeprefix("model.")
    if name.endswith("rotary_emb.inv_freq"):
        return None
    top = {"embed_tokens.weight": "decoder.embed.weight", "norm.weight": "decoder.norm.weight"}
    top["lm_head.weight"] = "decoder.lm_head.weight"
    if name in top:
        return top[name]
    match = _BLOCK.match(name)
    if match and match[2] in _LLAMA:
        return f"decoder.layers.{match[1]}.{_LLAMA[match[2]]}.{match[3]}"
    return f"decoder.{name}"
