"""Write trained weights as an ordinary Hugging Face checkpoint directory.

python package.py build/demo-training/joint.safetensors demo/model
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model import GRIDS, DemoModel, text_config, vision_config
from vocabulary import BOS, CHAT_TEMPLATE, END, IMAGE, PAD, SPECIAL_TOKENS, build_tokenizer

CONFIG_KEYS_LEFT_OUT = {"transformers_version", "_name_or_path", "architectures", "dtype"}


def config() -> dict[str, object]:
    """config.json of the `bluelm_v` architecture (toolchain/architectures/bluelm_v.py describes it)."""
    vision = {key: value for key, value in vision_config().to_dict().items() if key not in CONFIG_KEYS_LEFT_OUT}
    text = {key: value for key, value in text_config().to_dict().items() if key not in CONFIG_KEYS_LEFT_OUT}
    return {
        "model_type": "bluelm_v",
        "architectures": ["BlueLMVForConditionalGeneration"],
        "dtype": "float16",
        "image_token_id": IMAGE,
        "tie_word_embeddings": False,
        "vision_config": vision,
        "text_config": text,
        "projector_config": {"hidden_size": 2 * text_config().hidden_size, "hidden_act": "gelu", "downsample": 2, "bias": True},
        "tiling_config": {"policy": "relaxed_aspect", "grids": GRIDS, "thumbnail": "several_tiles", "alpha": 0.1},
        "image_tokens_config": {"arrangement": "picture_rows", "thumbnail_first": True, "newline": True},
    }


def write(weights: dict[str, torch.Tensor], out: Path) -> None:
    """Write every file of the checkpoint but the model card."""
    model = DemoModel()
    model.load_state_dict(weights)
    out.mkdir(parents=True, exist_ok=True)
    halves = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(halves, str(out / "model.safetensors"), metadata={"format": "pt"})
    special = {"bos_token": SPECIAL_TOKENS[BOS], "eos_token": SPECIAL_TOKENS[END], "pad_token": SPECIAL_TOKENS[PAD]}
    files = {
        "config.json": config(),
        "generation_config.json": {"bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": text_config().max_position_embeddings,
            "clean_up_tokenization_spaces": False,
            "image_token": SPECIAL_TOKENS[IMAGE],
            **special,
        },
        "preprocessor_config.json": {
            "image_processor_type": "LlavaNextImageProcessor",
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "resample": 3,
            "size": {"height": vision_config().image_size, "width": vision_config().image_size},
        },
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    build_tokenizer().save(str(out / "tokenizer.json"))
    print(f"{out}: {(out / 'model.safetensors').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write(load_file(arguments.weights), arguments.out)
