"""Reads a checkpoint and a recipe and refuses what cannot be exported, before any heavy work."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pocketvlm.errors import (
    BundleError,
    CheckpointError,
    RecipeError,
    SettingError,
    UsageError,
)
from pocketvlm.runtime.manifest import (
    GenerationSpec,
    PromptSpec,
    TokenizerSpec,
)
from pocketvlm.runtime.prompt import PromptBuilder
from pocketvlm.runtime.sampler import SamplingOptions
from pocketvlm.runtime.strict_json import decode
from pocketvlm.runtime.tokenizer import Tokenizer
from pocketvlm.toolchain.architectures import ARCHITECTURES
from pocketvlm.toolchain.backends import BACKENDS
from pocketvlm.toolchain.backends.base import Backend
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.estimate import Estimate, estimate
from pocketvlm.toolchain.prompts import derive_prompt
from pocketvlm.toolchain.quality import (
    STEPS,
    TEXT_PROMPT,
)
from pocketvlm.toolchain.quantize import calibration, calibration_text
from pocketvlm.toolchain.recipe import ExportRecipe, idle_settings
from pocketvlm.toolchain.spec import ModelSpec, check_spec
from pocketvlm.toolchain.task import TaskQuestion, load_task
from pocketvlm.toolchain.tiling import grids
from pocketvlm.toolchain.torch_ops import ACTIVATIONS
from pocketvlm.toolchain.weights import CanonicalWeights

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checkpoint that has been read and found good, before any heavy work."""

    spec: ModelSpec
    weights: CanonicalWeights
    prompt: PromptSpec
    tokenizer: TokenizerSpec
    builder: PromptBuilder
    text: Tokenizer
    capacity: int
    estimate: Estimate
    generation: GenerationSpec
    images: tuple[Path, ...]
    prompts: tuple[str, ...]
    task: tuple[TaskQuestion, ...]


def prepare(checkpoint: Checkpoint, recipe: ExportRecipe) -> Prepared:
    """Read and check everything that can be checked without work.

    Raises: as `export_checkpoint`.
    """
    idle = idle_settings(recipe)
    if idle:
        raise SettingError(
            idle[0],
            f"{', '.join(idle)} would have no effect: no target is qnn:*",
            "leave it out, or add such a target to `targets`",
        )
    spec, rename = describe(checkpoint, recipe)
    backends = [BACKENDS.load(target)(target) for target in recipe.targets]
    for backend in backends:
        backend.check(spec, recipe)
    weights = CanonicalWeights(checkpoint, spec, rename)
    if checkpoint.chat_template is None:
        raise CheckpointError(
            "the checkpoint has no chat template",
            "put chat_template.jinja, or chat_template in tokenizer_config.json, beside it",
        )
    prompt = derive_prompt(checkpoint.chat_template, checkpoint.special_tokens, spec.image_token)
    images, prompts = _images(recipe), _prompts(recipe)
    task = load_task(Path(recipe.task)) if recipe.task is not None else ()
    try:
        text = Tokenizer.open(checkpoint.path("tokenizer.json"))
        if recipe.calibration.prompts and not recipe.calibration.any_script:
            calibration_text.check_prompts(text, prompts)
        tokenizer = _tokenizer_spec(checkpoint, spec, prompt, text)
        builder = PromptBuilder(prompt, text, tokenizer.add_special_tokens)
        planned = calibration.plans(spec, images)
        longest = calibration.longest(builder, planned, prompts)
        for item in task:
            asked = calibration.longest(builder, calibration.plans(spec, [item.image]), [item.question])
            longest = max(longest, asked + task_steps(text, item) - STEPS)
    except BundleError as error:
        raise CheckpointError(
            f"tokenizer.json: {error.message}", "the tokenizer and the chat template do not belong together"
        ) from error
    limit = spec.decoder.max_positions
    if recipe.max_seq_len is not None and recipe.max_seq_len > limit:
        message = f"`max_seq_len` {recipe.max_seq_len} exceeds the model's {limit} positions"
        raise SettingError("max_seq_len", message, "take no more than that")
    capacity = min(capacity_of(backend, spec, recipe) for backend in backends)
    _check_room(longest, capacity, recipe)
    needs = [backend.needs(spec, recipe) for backend in backends]
    tokenizer_bytes = checkpoint.path("tokenizer.json").stat().st_size
    return Prepared(
        spec=spec,
        weights=weights,
        prompt=prompt,
        tokenizer=tokenizer,
        builder=builder,
        text=text,
        capacity=capacity,
        estimate=estimate(spec, recipe, planned, len(prompts), tokenizer_bytes, needs),
        generation=_generation(checkpoint),
        images=images,
        prompts=prompts,
        task=task,
    )


def describe(checkpoint: Checkpoint, recipe: ExportRecipe | None = None) -> tuple[ModelSpec, Any]:
    """ModelSpec of a checkpoint, and its renaming function.

    Raises:
        CheckpointError: an unknown architecture (the nearest names are told) or a config that makes no sense.
    """
    name = checkpoint.config.get("model_type")
    if not isinstance(name, str):
        raise CheckpointError("config.json has no model_type", "this is not the config of a Hugging Face model")
    module = ARCHITECTURES.load(name, CheckpointError)
    spec: ModelSpec = module.describe(checkpoint)
    if recipe is not None and recipe.tiling is not None:
        spec = replace(spec, tiling=grids.checked(recipe.tiling.apply(spec.tiling)))
    check_spec(spec)
    for kind in (spec.vision.activation, spec.connector.activation, spec.decoder.activation):
        if kind not in ACTIVATIONS:
            raise CheckpointError(f"config.json: activation {kind!r} is not supported", f"supported: {', '.join(ACTIVATIONS)}")
    return spec, module.rename


def capacity_of(backend: Backend, spec: ModelSpec, recipe: ExportRecipe) -> int:
    """Positions of the cache for a target."""
    return recipe.max_seq_len or min(spec.decoder.max_positions, backend.default_context)


def _check_room(longest: int, capacity: int, recipe: ExportRecipe) -> None:
    """Refuse a cache that cannot hold what the export itself is going to ask."""
    needed = max(longest, TEXT_PROMPT) + STEPS
    if needed <= capacity:
        return
    what = f"an image of the calibration or the task, its question and an answer take {needed} positions"
    if recipe.max_seq_len is not None:
        raise SettingError(
            "max_seq_len",
            f"`max_seq_len` {capacity} is too small: {what}",
            "raise it, or name smaller images under calibration.images in a recipe",
        )
    raise CheckpointError(f"{what}, the model has {capacity}", "give smaller images or grids in the recipe")


def _tokenizer_spec(checkpoint: Checkpoint, spec: ModelSpec, prompt: PromptSpec, text: Tokenizer) -> TokenizerSpec:
    token = text.token_id(spec.image_token)
    if token is None or spec.image_token not in text.added_tokens:
        raise CheckpointError(
            f"tokenizer.json has no added token {spec.image_token!r}",
            "add the image token that config.json names to the tokenizer",
        )
    largest = text.largest_text_id
    if largest >= spec.decoder.vocab_size:
        raise CheckpointError(
            f"tokenizer.json has a token {largest}, the model's vocabulary only {spec.decoder.vocab_size} entries",
            "the tokenizer and the weights do not belong together",
        )
    # transformers' processors let the tokenizer add its tokens unless the template has written the first one.
    first = checkpoint.special_tokens.get("bos_token", "")
    adds = not (first and any(start.startswith(first) for start in prompt.start.values()))
    return TokenizerSpec("tokenizer.json", token, spec.stop_tokens, adds)


def task_steps(text: Tokenizer, item: TaskQuestion) -> int:
    """Room for the answer, for other ways to split it into tokens, and to see that it ends."""
    return len(text.encode(item.answer, special=False)) + 8


def _images(recipe: ExportRecipe) -> tuple[Path, ...]:
    found: list[Path] = []
    for name in recipe.calibration.images:
        path = Path(name)
        if path.is_dir():
            found += sorted(item for item in path.iterdir() if item.suffix.lower() in _IMAGE_SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise RecipeError(f"calibration.images: {name!r} does not exist", "name an image file or a folder of images")
    if recipe.calibration.images and not found:
        raise RecipeError("calibration.images: no image found there", "name an image file or a folder of images")
    return tuple(found) or calibration.DEFAULT_IMAGES


def _prompts(recipe: ExportRecipe) -> tuple[str, ...]:
    prompts = recipe.calibration.prompts
    if isinstance(prompts, str):
        prompts = tuple(line.strip() for line in calibration_text.read_text(prompts, least=1).splitlines() if line.strip())
    return prompts or calibration.DEFAULT_PROMPTS


def _generation(checkpoint: Checkpoint) -> GenerationSpec:
    """What transformers' generate would do with generation_config.json: the penalty always, the rest if it samples."""
    stored = {item.name: checkpoint.generation.get(item.name) for item in fields(GenerationSpec)}
    given = {name: value for name, value in stored.items() if value is not None}
    if checkpoint.generation.get("do_sample", False):
        values = {"temperature": 1.0, "top_k": 50} | given
    else:
        values = {name: value for name, value in given.items() if name == "repetition_penalty"}
    found: GenerationSpec = decode(GenerationSpec, values, "generation_config.json", CheckpointError)
    try:
        SamplingOptions(found.temperature, found.top_k, found.top_p, found.min_p, found.repetition_penalty)
    except UsageError as error:
        raise CheckpointError(f"generation_config.json: {error.message}", error.hint) from None
    return found
