"""The demo model: BlueLM-V in miniature, assembled from transformers' own SigLIP and Llama modules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from screens import TILE, TOKENS_PER_SIDE
from vocabulary import BOS, END, PAD, VOCAB_SIZE

# What the three heads of each layer look at before training: neighbours so many patches (down, right) of their own.
HEAD_OFFSETS = (
    ((0, -1), (0, 1), (1, 0)), ((-1, 0), (0, 2), (0, -2)), ((1, 0), (-1, 0), (0, -1)), ((0, 1), (2, 0), (-2, 0)),
)  # fmt: skip

GRIDS = [[1, 1], [1, 2], [2, 1], [1, 3], [3, 1], [2, 2], [1, 4], [4, 1], [2, 3], [3, 2], [2, 4], [4, 2], [3, 3]]


def vision_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768,
        image_size=TILE, patch_size=8, vision_use_head=False,
    )  # fmt: skip


def text_config() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=192, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=48,
        intermediate_size=512, vocab_size=VOCAB_SIZE, max_position_embeddings=2048, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=False,
        bos_token_id=BOS, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip


class Projector(nn.Module):
    """2x2 concatenation of neighbouring patches, then a two-layer MLP (BlueLM-V-3B, section 3.3)."""

    def __init__(self, vision_size: int, text_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(4 * vision_size, 2 * text_size)
        self.linear_2 = nn.Linear(2 * text_size, text_size)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches [B, 400, D] -> tokens [B, 100, H]."""
        batch, _, size = patches.shape
        side = TOKENS_PER_SIDE
        grouped = patches.view(batch, side, 2, side, 2, size).transpose(2, 3).reshape(batch, side * side, 4 * size)
        return self.linear_2(nn.functional.gelu(self.linear_1(grouped)))


@torch.no_grad()
def start_as_local_filters(tower: SiglipVisionModel) -> None:
    """Let every head of an untrained tower look at one fixed offset, as the taps of a convolution do.

    The first 64 features hold sine-cosine codes of the patch's row and column. A shift of position turns such a code
    by fixed angles, so that turn in the query projection, and the plain code in the key projection, make a head
    attend to the patch at that shift. All of it is trained further. From such a start (Zheng et al., "Structured
    Initialization for Attention in Vision Transformers", 2024) the tower reads after a tenth of the steps.
    """
    size, frequencies = 64, [2 * math.pi / wavelength for wavelength in torch.logspace(0.415, 1.778, 16).tolist()]

    def code(steps: Tensor) -> Tensor:
        return torch.stack([turn(steps * frequency) for frequency in frequencies for turn in (torch.cos, torch.sin)], -1)

    positions = tower.embeddings.position_embedding.weight
    side = math.isqrt(len(positions))
    row, column = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    positions.mul_(0.1)
    positions[:, :size] = 0.7 * torch.cat([code(row.flatten()), code(column.flatten())], -1)
    tower.embeddings.patch_embedding.weight[:size] *= 0.05
    tower.embeddings.patch_embedding.bias[:size] = 0
    for layer, offsets in zip(tower.encoder.layers, HEAD_OFFSETS, strict=True):
        query, key = layer.self_attn.q_proj, layer.self_attn.k_proj
        for projection in (query, key):
            projection.weight.mul_(0.2)
            projection.bias.zero_()
        for head, (down, right) in enumerate(offsets):
            angles = torch.tensor([down * frequency for frequency in frequencies] + [right * f for f in frequencies])
            turns = [torch.tensor([[c, -s], [s, c]]) for c, s in zip(angles.cos(), angles.sin(), strict=True)]
            rows = slice(size * head, size * (head + 1))
            query.weight[rows, :size] += torch.block_diag(*turns)
            key.weight[rows, :size] += torch.eye(size)


class DemoModel(nn.Module):
    """Vision tower, projector and language model under the names that the checkpoint uses."""

    def __init__(self) -> None:
        super().__init__()
        vision, text = vision_config(), text_config()
        self.vision_tower = SiglipVisionModel(vision)
        self.multi_modal_projector = Projector(vision.hidden_size, text.hidden_size)
        self.language_model = LlamaForCausalLM(text)
        self.image_newline = nn.Parameter(torch.randn(text.hidden_size) * 0.3)
        nn.init.normal_(self.language_model.model.embed_tokens.weight, std=0.3)

    def encode_tiles(self, pixels: Tensor) -> Tensor:
        """Normalised tiles [B, 3, 160, 160] -> visual tokens [B, 100, H]."""
        return self.multi_modal_projector(self.vision_tower(pixel_values=pixels).last_hidden_state)

    def arrange(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens of all tiles [B, tiles, 100, H] -> sequence [B, T, H].

        The thumbnail comes first; the tiles' tokens are put back into one picture and read row by row, a learned
        newline after each row (LLaVA-NeXT's arrangement).
        """
        cols, rows = grid
        batch, _, _, size = tokens.shape
        side = TOKENS_PER_SIDE
        thumbnail = tokens[:, : tokens.shape[1] - cols * rows].flatten(1, 2)
        tiles = tokens[:, tokens.shape[1] - cols * rows :].reshape(batch, rows, cols, side, side, size)
        picture = tiles.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows * side, cols * side, size)
        newline = self.image_newline.to(tokens.dtype).expand(batch, rows * side, 1, size)
        return torch.cat([thumbnail, torch.cat([picture, newline], 2).flatten(1, 2)], 1)

    def answer_logits(self, visual: Tensor, token_ids: Tensor, prefix: int) -> Tensor:
        """Logits [B, L, V] of `token_ids` [B, L] when `visual` [B, T, H] stands after its first `prefix` tokens."""
        text = self.language_model.model.embed_tokens(token_ids)
        sequence = torch.cat([text[:, :prefix], visual.to(text.dtype), text[:, prefix:]], 1)
        hidden = self.language_model.model(inputs_embeds=sequence, use_cache=False).last_hidden_state
        kept = torch.cat([hidden[:, :prefix], hidden[:, prefix + visual.shape[1] :]], 1)
        return self.language_model.lm_head(kept)
