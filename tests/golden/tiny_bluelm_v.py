"""BlueLM-V in miniature from transformers' own SigLIP and Llama modules and plain torch: none of our code runs here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, SiglipVisionConfig, SiglipVisionModel
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from .conftest import build_tokenizer, randomise

PATCH = 8
VISION, TEXT = 32, 64
BOS, END, PAD, IMAGE = range(4)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


class TinyBlueLMV(nn.Module):
    """Tower, projector and language model under the names of the checkpoint layout, with random weights.

    Args:
        side: patches per side of a tile; an odd one is padded before four patches become one token.
        arrangement, newline, thumbnail_first: how the tiles' tokens stand in the prompt.
    """

    def __init__(
        self,
        *,
        side: int = 5,
        arrangement: str = "picture_rows",
        newline: bool = True,
        thumbnail_first: bool = True,
        bias: bool = True,
        positions: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.side, self.size = side, side * PATCH
        self.arrangement, self.thumbnail_first = arrangement, thumbnail_first
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer()
        self.tokenizer.chat_template = TEMPLATE
        self.vision_tower = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=VISION,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=64,
                image_size=self.size,
                patch_size=PATCH,
                vision_use_head=False,
            )
        )
        self.multi_modal_projector = nn.ModuleDict(
            {"linear_1": nn.Linear(4 * VISION, 96, bias=bias), "linear_2": nn.Linear(96, TEXT, bias=bias)}
        )
        self.language_model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=TEXT,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=96,
                vocab_size=len(self.tokenizer),
                max_position_embeddings=positions,
                tie_word_embeddings=False,
                bos_token_id=BOS,
                eos_token_id=END,
                pad_token_id=PAD,
            )
        )
        if newline:
            self.image_newline = nn.Parameter(torch.zeros(TEXT))
        self.has_newline = newline
        self.eval()
        randomise(self, seed)

    def save(self, directory: Path, grids: Sequence[tuple[int, int]]) -> Path:
        """Write the checkpoint directory; `grids` are (columns, rows)."""
        directory.mkdir(parents=True)
        left_out = {"transformers_version", "_name_or_path", "architectures", "dtype"}
        parts = {"vision_config": self.vision_tower.config, "text_config": self.language_model.config}
        config: dict[str, Any] = {
            name: {key: value for key, value in part.to_dict().items() if key not in left_out} for name, part in parts.items()
        }
        config |= {
            "model_type": "bluelm_v",
            "image_token_id": IMAGE,
            "projector_config": {"hidden_size": 96, "bias": self.multi_modal_projector["linear_1"].bias is not None},
            "tiling_config": {"policy": "relaxed_aspect", "grids": [list(grid) for grid in grids]},
            "image_tokens_config": {
                "arrangement": self.arrangement,
                "thumbnail_first": self.thumbnail_first,
                "newline": self.has_newline,
            },
        }
        (directory / "config.json").write_text(json.dumps(config))
        processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "rescale_factor": 1 / 255}
        (directory / "preprocessor_config.json").write_text(json.dumps(processor))
        self.tokenizer.save_pretrained(directory)
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, str(directory / "model.safetensors"), metadata={"format": "pt"})
        return directory

    def pixels(self, image: Image.Image, grid: tuple[int, int]) -> Tensor:
        """Thumbnail and tiles [1 + tiles, 3, S, S] as transformers' LLaVA-NeXT processor cuts them; one grid is allowed."""
        cols, rows = grid
        processor = LlavaNextImageProcessorPil(
            size={"shortest_edge": self.size},
            crop_size=self.size,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            image_grid_pinpoints=[[rows * self.size, cols * self.size]],
        )
        found = torch.from_numpy(np.asarray(processor(image, return_tensors="np")["pixel_values"][0]))
        # The processor adds the whole image even to a single tile; the checkpoint asks for it beside several.
        return found if cols * rows > 1 else found[1:]

    @torch.inference_mode()
    def encode_tiles(self, pixels: Tensor) -> Tensor:
        """Tiles [B, 3, S, S] -> tokens [B, T, H]: 2x2 neighbours side by side in one vector, then the MLP."""
        patches = self.vision_tower(pixel_values=pixels).last_hidden_state
        picture = patches.reshape(len(pixels), self.side, self.side, VISION)
        missing = self.side % 2
        picture = nn.functional.pad(picture, (0, 0, 0, missing, 0, missing))
        four = [picture[:, down::2, right::2] for down in (0, 1) for right in (0, 1)]
        merged = torch.cat(four, -1).flatten(1, 2)
        linear_1, linear_2 = self.multi_modal_projector["linear_1"], self.multi_modal_projector["linear_2"]
        tokens: Tensor = linear_2(nn.functional.gelu(linear_1(merged)))
        return tokens

    @torch.inference_mode()
    def image_tokens(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Visual tokens [T, H] of one image in the order in which the decoder reads them."""
        cols, rows = grid
        tokens = self.encode_tiles(pixels)
        thumbnail, tiles = tokens[: len(tokens) - cols * rows], tokens[len(tokens) - cols * rows :]
        if self.arrangement == "picture_rows":
            side = -(-self.side // 2)
            lines = []
            for row in range(rows):
                for line in range(side):
                    for col in range(cols):
                        tile = tiles[row * cols + col]
                        lines.append(tile[line * side : (line + 1) * side])
                    if self.has_newline:
                        lines.append(self.image_newline[None])
            picture = torch.cat(lines)
        else:
            picture = tiles.flatten(0, 1)
        parts = [thumbnail.flatten(0, 1), picture]
        return torch.cat(parts if self.thumbnail_first else parts[::-1])

    @torch.inference_mode()
    def answer(self, messages: list[dict[str, Any]], images: Sequence[Tensor], count: int) -> tuple[list[int], float]:
        """Greedy tokens after a conversation, without the stop token, and the smallest lead of a chosen token's logit."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        embed, waiting = self.language_model.get_input_embeddings(), iter(images)
        rows = [next(waiting) if token == IMAGE else embed(torch.tensor([token])) for token in ids]
        found = self.language_model.generate(
            inputs_embeds=torch.cat(rows)[None],
            attention_mask=torch.ones(1, sum(map(len, rows)), dtype=torch.int64),
            max_new_tokens=count,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.stack(found.logits)[:, 0].topk(2).values
        tokens: list[int] = found.sequences[0].tolist()
        return tokens[: tokens.index(END)] if END in tokens else tokens, float((best[:, 0] - best[:, 1]).min())
