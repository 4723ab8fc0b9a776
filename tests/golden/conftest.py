"""Tiny random models, saved by transformers exactly as real ones are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEXT = (
    "The quick brown fox jumps over the lazy dog. What is in this picture? USER: ASSISTANT: Describe the image, please. "
    "Numbers 0 1 2 3 4 5 6 7 8 9 and words. "
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 400 tokens with LLaVA's special ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.add_special_tokens({"additional_special_tokens": [AddedToken("<image>", special=True, normalized=False)]})
    return fast


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that a wrong position, scale or norm changes the greedy tokens."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.15, generator=generator)
        elif "norm" in name and name.endswith("weight"):
            parameter.data.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.data.normal_(0, 0.1, generator=generator)


def save_llava(
    directory: Path, *, tower: str = "clip", feature_layer: int | list[int] = -2, strategy: str = "default",
    bias: bool = True, tied: bool = False, seed: int = 0, rope: dict[str, object] | None = None,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:  # fmt: skip
    """Save a tiny LlavaForConditionalGeneration with its processor; returns both."""
    tokenizer = build_tokenizer()
    shared = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    vision: CLIPVisionConfig | SiglipVisionConfig
    image_processor: CLIPImageProcessor | SiglipImageProcessor
    if tower == "clip":
        vision = CLIPVisionConfig(image_size=56, patch_size=14, **shared)
        image_processor = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    else:
        vision = SiglipVisionConfig(image_size=56, patch_size=14, **shared)
        image_processor = SiglipImageProcessor(size={"height": 56, "width": 56})
    text = LlamaConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=len(tokenizer), max_position_embeddings=256, tie_word_embeddings=tied,
        bos_token_id=0, eos_token_id=1, pad_token_id=2, **({"rope_parameters": rope} if rope else {}),
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=feature_layer, vision_feature_select_strategy=strategy, multimodal_projector_bias=bias,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval().float()
    randomise(model, seed)
    if tied:
        model.tie_weights()
    model.generation_config.eos_token_id = 1
    model.save_pretrained(directory)
    processor = LlavaProcessor(
        image_processor=image_processor, tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1 if tower == "clip" else 0, chat_template=LLAVA_TEMPLATE,
    )  # fmt: skip
    processor.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model, processor


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose thresholds a random model can meet."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(
        json.dumps(
            {
                "decoder_weights": {"method": "rtn"},
                "calibration": {"tokens": 512},
                "thresholds": {"stage_cosine": 0.8, "logits_kl": 5.0, "top1": 0.0},
            }
        )
    )
    return path
