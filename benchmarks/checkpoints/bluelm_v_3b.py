"""BlueLM-V-3B at full size with random weights: for shapes, memory and bundle size, never for answers.

    python benchmarks/checkpoints/bluelm_v_3b.py build/bluelm-v-3b          5.8 GB on disk, a few minutes

SigLIP-so400m/384 (27 layers, 1152), 2x2 concatenation to 196 tokens a tile, and a Llama-style decoder of 2.7 billion
parameters. The paper (arXiv 2411.10640) gives the tower and the decoder's size, not its shape: width, depth and heads
here are ours. Weights are written one tensor at a time, so a small machine suffices.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "demo" / "training"))
from vocabulary import BOS, CHAT_TEMPLATE, END, IMAGE, PAD, build_tokenizer

VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16,
    "intermediate_size": 4304, "image_size": 384, "patch_size": 14, "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6, "vision_use_head": False,
}  # fmt: skip
TEXT = {
    "model_type": "llama", "hidden_size": 2560, "num_hidden_layers": 31, "num_attention_heads": 20,
    "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 8192, "vocab_size": 100352,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": True, "bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD,
}  # fmt: skip
SIDES = [(cols, rows) for cols in range(1, 5) for rows in range(1, 5) if cols * rows <= 9]


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint."""
    width, inner = VISION["hidden_size"], VISION["intermediate_size"]
    tower = "vision_tower.vision_model"
    found: dict[str, tuple[int, ...]] = {
        f"{tower}.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        f"{tower}.embeddings.patch_embedding.bias": (width,),
        f"{tower}.embeddings.position_embedding.weight": (27 * 27, width),
        f"{tower}.post_layernorm.weight": (width,),
        f"{tower}.post_layernorm.bias": (width,),
    }
    for index in range(VISION["num_hidden_layers"]):
        prefix = f"{tower}.encoder.layers.{index}"
        linears = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        linears |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for name, shape in linears.items():
            found |= {f"{prefix}.{name}.weight": shape, f"{prefix}.{name}.bias": shape[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            found |= {f"{prefix}.{name}.weight": (width,), f"{prefix}.{name}.bias": (width,)}
    hidden, middle = TEXT["hidden_size"], TEXT["intermediate_size"]
    key = TEXT["num_key_value_heads"] * TEXT["head_dim"]
    found |= {"multi_modal_projector.linear_1.weight": (hidden, 4 * width), "multi_modal_projector.linear_1.bias": (hidden,)}
    found |= {"multi_modal_projector.linear_2.weight": (hidden, hidden), "multi_modal_projector.linear_2.bias": (hidden,)}
    found |= {
        "language_model.model.embed_tokens.weight": (TEXT["vocab_size"], hidden),
        "language_model.model.norm.weight": (hidden,),
    }
    for index in range(TEXT["num_hidden_layers"]):
        prefix = f"language_model.model.layers.{index}"
        attention = {"q": (hidden, hidden), "k": (key, hidden), "v": (key, hidden), "o": (hidden, hidden)}
        found |= {f"{prefix}.self_attn.{name}_proj.weight": shape for name, shape in attention.items()}
        mlp = {"gate": (middle, hidden), "up": (middle, hidden), "down": (hidden, middle)}
        found |= {f"{prefix}.mlp.{name}_proj.weight": shape for name, shape in mlp.items()}
        found |= {f"{prefix}.input_layernorm.weight": (hidden,), f"{prefix}.post_attention_layernorm.weight": (hidden,)}
    return found


def write_weights(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of float16 tensors, streamed: the library's writer would hold all of them at once."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            if "norm" in name and name.endswith("weight"):
                values = np.ones(shape, np.float16)
            elif len(shape) == 1:
                values = np.zeros(shape, np.float16)
            else:
                values = (rng.standard_normal(shape, np.float32) * np.sqrt(1.0 / shape[-1])).astype(np.float16)
            file.write(values.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    tensors = shapes()
    config = {
        "model_type": "bluelm_v", "image_token_id": IMAGE, "vision_config": VISION, "text_config": TEXT,
        "projector_config": {"hidden_size": TEXT["hidden_size"]},
        "tiling_config": {"grids": SIDES}, "image_tokens_config": {"arrangement": "tile_by_tile", "thumbnail_first": False},
    }  # fmt: skip
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "rescale_factor": 1 / 255}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": END}))
    (out / "preprocessor_config.json").write_text(json.dumps(processor))
    (out / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<|end|>"}))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    build_tokenizer().save(str(out / "tokenizer.json"))
    write_weights(out / "model.safetensors", tensors)
    count = {part: sum(int(np.prod(s)) for n, s in tensors.items() if n.startswith(part)) for part in ("vision", "language")}
    print(f"{out}: vision {count['vision'] / 1e9:.2f} billion parameters, language {count['language'] / 1e9:.2f} billion")


if __name__ == "__main__":
    main()
