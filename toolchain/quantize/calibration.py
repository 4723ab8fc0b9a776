"""Calibration data: real images, prompts and text, turned into what the decoder sees.

Without a recipe's own data, three photographs that lie beside this file (scikit-image's astronaut, coffee and
chelsea: public domain and CC0), a few questions, and English text from Python's own documentation are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketvlm.runtime.image import load_image, make_tiles
from pocketvlm.runtime.prompt import ImageSlot, PromptBuilder, PromptTokens
from pocketvlm.runtime.tiling import TilePlan, arrange_tokens, plan_tiles
from pocketvlm.toolchain.model import EagerModel
from pocketvlm.toolchain.spec import ModelSpec

DEFAULT_IMAGES = tuple(sorted((Path(__file__).parent / "calibration_data").glob("*.jpg")))
DEFAULT_PROMPTS = (
    "Describe this image in detail.",
    "What is written here? Read everything.",
    "How many people are in the picture, and what are they doing?",
    "What is the total, and what time is it?",
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One image with one question, as the runtime would see it: embeddings float32 [1, L, H]."""

    image: Path
    plan: TilePlan
    tokens: PromptTokens
    pixels: Tensor
    embeddings: Tensor


def pairs(images: int, prompts: int, judged: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Which image goes with which prompt: for calibration (the shorter list is cycled), and up to `judged` others.

    Where there is no other pair, the judge must take those that calibration saw.
    """
    seen = [(number % images, number % prompts) for number in range(max(images, prompts))]
    other = [(image, prompt) for prompt in range(prompts) for image in range(images) if (image, prompt) not in seen]
    return seen, (other or seen)[:judged]


class Pictures:
    """Makes conversations with the eager model; every image is encoded once."""

    def __init__(self, model: EagerModel, builder: PromptBuilder) -> None:
        self._model, self._builder = model, builder
        self._encoded: dict[Path, tuple[TilePlan, Tensor, Tensor]] = {}

    def conversation(self, image: Path, prompt: str) -> Conversation:
        """One question about one image."""
        if image not in self._encoded:
            self._encoded[image] = encode_image(self._model, image)
        plan, pixels, visual = self._encoded[image]
        tokens = self._builder.encode(_ask(prompt))
        return Conversation(image, plan, tokens, pixels, splice(self._model.embed, tokens, [visual]))


def plans(spec: ModelSpec, images: Iterable[Path]) -> list[TilePlan]:
    """How the images will be cut."""
    sizes = [load_image(path, spec.image).size for path in images]
    return [plan_tiles(width, height, spec.tiling, spec.image_tokens) for width, height in sizes]


def longest(builder: PromptBuilder, planned: Iterable[TilePlan], prompts: Iterable[str]) -> int:
    """Positions that the longest question about the largest image takes, known without the model."""
    visual = [plan.image_tokens for plan in planned]
    texts = [sum(len(part) for part in builder.encode(_ask(prompt)).parts if isinstance(part, tuple)) for prompt in prompts]
    return max(visual) + max(texts)


def _ask(prompt: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]


def encode_image(model: EagerModel, source: Path) -> tuple[TilePlan, Tensor, Tensor]:
    """Image file -> its plan, pixels [tiles, 3, S, S] and visual tokens [T, H] in prompt order."""
    spec = model.spec
    image = load_image(source, spec.image)
    plan = plan_tiles(image.width, image.height, spec.tiling, spec.image_tokens)
    pixels = torch.from_numpy(make_tiles(image, plan, spec.tiling, spec.image, spec.image_tokens.thumbnail_first))
    return plan, pixels, torch.from_numpy(arrange(model, model.encode_tiles(pixels).numpy(), plan))


def arrange(model: EagerModel, tokens: NDArray[np.float32], plan: TilePlan) -> NDArray[np.float32]:
    """Visual tokens of the tiles [tiles, T, H] -> of the image [image_tokens, H]."""
    newline = model.newline()
    return arrange_tokens(tokens, plan, model.spec.image_tokens, None if newline is None else newline.numpy())


def splice(embed: Callable[[Sequence[int]], Tensor], prompt: PromptTokens, images: Sequence[Tensor]) -> Tensor:
    """A prompt and the visual tokens of its images -> embeddings [1, L, H]; `embed` is the table, ids to [1, n, H]."""
    rows = [
        images[part.index][None] if isinstance(part, ImageSlot) else embed(part)
        for part in prompt.parts
        if isinstance(part, ImageSlot) or part
    ]
    return torch.cat(rows, 1)


def text_sequences(model: EagerModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Token ids of equally long texts, embedded: float32 [batch, length, H], up to 4 to a batch."""
    return [torch.cat([model.embed(row) for row in rows[start : start + 4]]) for start in range(0, len(rows), 4)]
