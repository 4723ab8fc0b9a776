"""What an export calibrates on, and what its result is judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from pocketvlm.errors import (
    RecipeError,
)
from pocketvlm.toolchain.model import EagerModel
from pocketvlm.toolchain.prepare import Prepared, task_steps
from pocketvlm.toolchain.progress import Progress
from pocketvlm.toolchain.quality import (
    SAMPLES,
    STEPS,
    TEXT_PROMPT,
    TaskSample,
)
from pocketvlm.toolchain.quantize import calibration, calibration_text
from pocketvlm.toolchain.quantize.kv_cache import KvRangeObserver, KvScales
from pocketvlm.toolchain.quantize.self_text import write_text
from pocketvlm.toolchain.recipe import GENERATED, ExportRecipe
from pocketvlm.toolchain.torch_ops import EagerCache


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """Real images, questions and text: what calibration sees, and what the result is judged by.

    Attributes:
        conversations: pairs of an image and a question, for calibration.
        judged: other pairs, if there are any.
        pictures: makes further ones.
        sequences: text for calibration, float32 [batch, L, H] each.
        held_out: token ids of text that calibration does not see.
    """

    conversations: list[calibration.Conversation]
    judged: list[calibration.Conversation]
    pictures: calibration.Pictures
    sequences: list[Tensor]
    held_out: list[int]


def calibrate(prepared: Prepared, recipe: ExportRecipe, progress: Progress) -> tuple[CalibrationData, KvScales | None]:
    """Embed the calibration data, and find the cache's scales through the chunked loop."""
    spec = prepared.spec
    if prepared.estimate.keep_weights:
        prepared.weights.keep_in_memory(1 << 62)
    observer = KvRangeObserver(spec.decoder)
    model = EagerModel(spec, prepared.weights, observer)
    progress.stage("calibrate", max(len(prepared.images), len(prepared.prompts)))
    data = _data(prepared, model, recipe, progress)
    if recipe.precision == "fp32":
        return data, None
    for conversation in data.conversations:
        model.prefill(conversation.embeddings[:, : prepared.capacity], EagerCache(), recipe.chunk_size)
        progress.advance(1)
    for sequence in data.sequences:
        for row in sequence:
            model.prefill(row[None, : prepared.capacity], EagerCache(), recipe.chunk_size)
    if recipe.kv_cache.dtype != "int8":
        return data, None
    return data, observer.scales(recipe.kv_cache.granularity or "per_channel")


def _data(prepared: Prepared, model: EagerModel, recipe: ExportRecipe, progress: Progress) -> CalibrationData:
    seen, judged = calibration.pairs(len(prepared.images), len(prepared.prompts), SAMPLES)
    pictures = calibration.Pictures(model, prepared.builder)

    def conversations(chosen: list[tuple[int, int]]) -> list[calibration.Conversation]:
        return [pictures.conversation(prepared.images[image], prepared.prompts[prompt]) for image, prompt in chosen]

    length = min(calibration_text.TEXT_LENGTH, prepared.capacity)
    kept = 4 * STEPS + 64
    wanted = kept + recipe.calibration.tokens
    any_script = recipe.calibration.any_script
    ids = calibration_text.token_ids(prepared.text, recipe.calibration.text, wanted, any_script=any_script)
    held_out, rest = ids[:kept], ids[kept:]
    if len(held_out) <= TEXT_PROMPT:
        raise RecipeError(f"calibration.text gives only {len(ids)} tokens", "name a longer text")
    rows = calibration_text.rows_of(rest, recipe.calibration.tokens, length)
    if recipe.precision == "fp32":
        rows = []
    elif recipe.calibration.text == GENERATED:
        rows = _generated(prepared, recipe.calibration.tokens // length, length, progress)
    return CalibrationData(
        conversations(seen if recipe.precision != "fp32" else []),
        conversations(judged),
        pictures,
        calibration.text_sequences(model, rows),
        held_out,
    )


def _generated(prepared: Prepared, sequences: int, length: int, progress: Progress) -> list[list[int]]:
    progress.stage("let the model write calibration text", length - 1)
    return write_text(
        prepared.spec.decoder,
        prepared.weights,
        sequences=max(sequences, 1),
        length=length,
        forbidden=set(prepared.text.added_tokens.values()),
        tokens=prepared.text.largest_text_id + 1,
        advance=progress.advance,
    )


def task_samples(prepared: Prepared, pictures: calibration.Pictures) -> Iterator[TaskSample]:
    """The task's questions as conversations, each with its judge; made one at a time."""
    text = prepared.text
    for item in prepared.task:

        def is_right(tokens: list[int], wanted: str = item.answer.strip()) -> bool:
            return text.decode(tokens).strip() == wanted

        yield TaskSample(pictures.conversation(item.image, item.question), task_steps(text, item), is_right)
