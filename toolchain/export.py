"""Checkpoint -> phone bundle, in one straight line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pocketvlm import __version__
from pocketvlm.errors import (
    BundleError,
    Cancelled,
    CheckpointError,
    GateError,
    PocketVLMError,
    RecipeError,
    SettingError,
    UsageError,
)
from pocketvlm.runtime.manifest import (
    SCHEMA_MAJOR,
    SCHEMA_MINOR,
    GenerationSpec,
    Manifest,
    ModelInfo,
    PromptSpec,
    SchemaVersion,
    TokenizerSpec,
    VariantSpec,
    to_json,
)
from pocketvlm.runtime.prompt import PromptBuilder
from pocketvlm.runtime.sampler import SamplingOptions
from pocketvlm.runtime.strict_json import decode
from pocketvlm.runtime.tokenizer import Tokenizer
from pocketvlm.toolchain.architectures import ARCHITECTURES
from pocketvlm.toolchain.backends import BACKENDS
from pocketvlm.toolchain.backends.base import Backend, Lowered, LowerJob
from pocketvlm.toolchain.bundle import BundleWriter, check_replaceable
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.estimate import Estimate, estimate
from pocketvlm.toolchain.kept import RESULTS, Kept, what_is_kept
from pocketvlm.toolchain.model import EagerModel
from pocketvlm.toolchain.progress import Progress
from pocketvlm.toolchain.prompts import derive_prompt
from pocketvlm.toolchain.quantize import calibration, calibration_text
from pocketvlm.toolchain.quantize.decoder import DecoderQuantizer
from pocketvlm.toolchain.quantize.kv_cache import KvRangeObserver, KvScales
from pocketvlm.toolchain.quantize.self_text import write_text
from pocketvlm.toolchain.recipe import GENERATED, ExportRecipe, idle_settings
from pocketvlm.toolchain.spec import ModelSpec, check_spec
from pocketvlm.toolchain.task import TaskQuestion, load_task
from pocketvlm.toolchain.tiling import grids
from pocketvlm.toolchain.torch_ops import ACTIVATIONS, EagerCache
from pocketvlm.toolchain.verify import (
    REPORT_NAME,
    SAMPLES,
    STEPS,
    TEXT_PROMPT,
    QualityReport,
    TaskSample,
    check_thresholds,
    measure,
    measured_steps,
)
from pocketvlm.toolchain.weights import CanonicalWeights

# An export that is estimated to take so long keeps what it has worked out, in case it is interrupted.
KEEP_FROM_SECONDS = 300
# Files that a backend writes, about: patch_embed, vision_encoder, connector, and all of the decoder.
_GRAPHS = 4
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True, slots=True)
class Report:
    """What an export did. `quality` is by variant name."""

    bundle: Path
    manifest: Manifest
    quality: dict[str, QualityReport]


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


def export_checkpoint(checkpoint: Checkpoint, output: Path, recipe: ExportRecipe, progress: Progress) -> Report:
    """Write the phone bundle of `checkpoint` to `output`. Nothing is written unless all of it succeeds.

    Raises:
        UsageError: something that is no bundle stands at `output`.
        SettingError: a target or the model cannot follow the recipe.
        CheckpointError: the checkpoint is incomplete, damaged or not supported.
        TemplateError: its chat template is hostile or cannot be expressed as data.
        RecipeError: a calibration file is unusable.
        GateError: the result misses a threshold of the recipe.
        EnvironmentFault: not enough disk space.
    """
    check_replaceable(output)
    prepared = prepare(checkpoint, recipe)
    expected = prepared.estimate
    progress.estimate(expected.ram_bytes, expected.disk_bytes, expected.seconds)
    _tell_shortened_chunks(prepared.spec, recipe, progress)
    with BundleWriter(output, expected.disk_bytes) as writer, _telling_what_is_kept(output, progress):
        writer.copy(checkpoint.path("tokenizer.json"), prepared.tokenizer.file)
        spec = prepared.spec
        data, scales = _calibrate(prepared, recipe, progress)
        model = EagerModel(spec, prepared.weights)
        lowered = _lower(prepared, recipe, writer, data, scales, model, checkpoint.weights_sha256, progress)
        variants = _variants(lowered)
        newline = model.newline()
        if newline is not None:
            writer.write(spec.image_tokens.newline, newline.numpy().astype("<f4").tobytes())
        quality = _verify(prepared, recipe, writer.directory, data, model, lowered, progress)
        report = {"thresholds": to_json(recipe.thresholds), "variants": {n: q.to_json() for n, q in quality.items()}}
        writer.write(REPORT_NAME, json.dumps(report, indent=1) + "\n")
        manifest = Manifest(
            schema=SchemaVersion(SCHEMA_MAJOR, SCHEMA_MINOR),
            pocketvlm=__version__,
            model=_model_info(checkpoint, spec, prepared.weights),
            tiling=spec.tiling,
            image=spec.image,
            image_tokens=spec.image_tokens,
            prompt=prepared.prompt,
            tokenizer=prepared.tokenizer,
            generation=prepared.generation,
            variants=tuple(variants),
            files=(),
        )
        committed = writer.commit(manifest)
    shutil.rmtree(work_path(output), ignore_errors=True)
    return Report(output, committed, quality)


def _verify(
    prepared: Prepared, recipe: ExportRecipe, root: Path, data: CalibrationData, model: EagerModel, lowered: list[Lowered],
    progress: Progress,
) -> dict[str, QualityReport]:  # fmt: skip
    """Hold everything that was lowered against the thresholds, then finish it; quality by variant name."""
    measured: list[tuple[VariantSpec, QualityReport]] = []
    for item in lowered:
        if all(item.checked != checked for checked, _ in measured):
            # SoCs share their graphs.
            targets = [other.variant.target for other in lowered if other.checked == item.checked]
            steps = measured_steps(data.judged, len(prepared.task))
            progress.stage(f"verify {', '.join(targets)} against the checkpoint", steps)
            task = _task(prepared, data.pictures)
            found = measure(model, item.checked, root, data.judged, data.held_out, STEPS, task, progress.advance)
            measured.append((item.checked, found))
            check_thresholds(found, recipe.thresholds)
    quality = {}
    for item in lowered:
        found = next(quality for checked, quality in measured if checked == item.checked)
        quality[item.variant.name] = replace(found, parts=item.finish(root, data.judged[0]))
        if item.proxy is not None:
            quality[item.proxy.name] = found
    return quality


@contextmanager
def _telling_what_is_kept(output: Path, progress: Progress) -> Iterator[None]:
    work = work_path(output)
    if kept := what_is_kept(work):
        progress.note(f"an earlier export has left in {work}: {kept}; what still fits is taken")
    try:
        yield
    except BaseException as error:
        if kept := what_is_kept(work):
            progress.note(f"kept in {work}: {kept}; {_how_to_go_on(error)}")
        elif work.is_dir():
            progress.note(f"left in {work}: files on the way; an export to the same place that succeeds removes them")
        raise


def _how_to_go_on(error: BaseException) -> str:
    """What the user does to go on after `error`: what has failed once, fails again with the same recipe."""
    if isinstance(error, KeyboardInterrupt | SystemExit | Cancelled):
        return "the same command goes on with it"
    advice = error.hint if isinstance(error, PocketVLMError) else ""
    if isinstance(error, GateError) or any(f"{item.name}." in advice for item in fields(ExportRecipe)):
        return "after you have changed the recipe (-c), the same command goes on with it"
    return "when that is mended, the same command goes on with it"


def work_path(output: Path) -> Path:
    """Where an export keeps what the next one can take up if this one is interrupted."""
    return output.resolve().with_name(f".{output.resolve().name}.work")


def _lower(
    prepared: Prepared, recipe: ExportRecipe, writer: BundleWriter, data: CalibrationData, scales: KvScales | None,
    model: EagerModel, weights_sha256: str, progress: Progress,
) -> list[Lowered]:  # fmt: skip
    """Lower for every target, first for those that others build on; the result is in the recipe's order."""
    made: dict[Callable[..., object], object] = {}
    done: dict[str, Lowered] = {}
    backends = {target: BACKENDS.load(target)(target) for target in recipe.targets}
    long = prepared.estimate.seconds >= KEEP_FROM_SECONDS
    kept = Kept(
        work_path(writer.output) / RESULTS if long else None,
        (__version__, weights_sha256, recipe.precision, torch.__version__, torch.get_num_threads()),
        lambda what: progress.note(f"kept from before: {what}"),
    )

    def resume() -> None:
        progress.stage(f"go on writing the graphs for {target}", _GRAPHS)

    decoder = _decoder(prepared, data, kept, resume, progress)
    for target in sorted(backends, key=lambda name: backends[name].builds_on_others):
        progress.stage(f"write the graphs for {target}", _GRAPHS)
        prefix = target.replace(":", "-")
        job = LowerJob(
            spec=prepared.spec,
            weights=prepared.weights,
            recipe=recipe,
            folder=writer.folder(prefix),
            prefix=prefix,
            folders=writer.folder,
            work=work_path(writer.output),
            kept=kept,
            others={name: item.variant for name, item in done.items()},
            made=made,
            capacity=capacity_of(backends[target], prepared.spec, recipe),
            kv_scales=scales,
            decoder=decoder,
            model=model,
            conversations=data.conversations,
            sequences=data.sequences,
            progress=progress,
        )
        done[target] = backends[target].lower(job)
    return [done[target] for target in recipe.targets]


def _variants(lowered: list[Lowered]) -> list[VariantSpec]:
    """Those that were asked for, then their proxies, each once."""
    found = [item.variant for item in lowered]
    proxies = {item.proxy.name: item.proxy for item in lowered if item.proxy is not None}
    return [*found, *proxies.values()]


def capacity_of(backend: Backend, spec: ModelSpec, recipe: ExportRecipe) -> int:
    """Positions of the cache for a target."""
    return recipe.max_seq_len or min(spec.decoder.max_positions, backend.default_context)


def _tell_shortened_chunks(spec: ModelSpec, recipe: ExportRecipe, progress: Progress) -> None:
    for target in recipe.targets:
        capacity = capacity_of(BACKENDS.load(target)(target), spec, recipe)
        if recipe.chunk_size > capacity:
            told = f"chunk_size {recipe.chunk_size} is more than the cache of {target} holds"
            progress.note(f"{told}: its chunks are of {capacity} positions")


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
            longest = max(longest, asked + _task_steps(text, item) - STEPS)
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


def _calibrate(prepared: Prepared, recipe: ExportRecipe, progress: Progress) -> tuple[CalibrationData, KvScales | None]:
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


def _decoder(
    prepared: Prepared, data: CalibrationData, kept: Kept, resume: Callable[[], None], progress: Progress
) -> DecoderQuantizer:
    def begin(name: str, steps: int) -> Callable[[int], None]:
        progress.stage(name, steps)
        return progress.advance

    sequences = [*(item.embeddings[:, : prepared.capacity] for item in data.conversations), *data.sequences]
    method = prepared.estimate.method
    return DecoderQuantizer(prepared.spec.decoder, prepared.weights, method, sequences, begin, kept, resume)


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


def _task(prepared: Prepared, pictures: calibration.Pictures) -> Iterator[TaskSample]:
    text = prepared.text
    for item in prepared.task:

        def is_right(tokens: list[int], wanted: str = item.answer.strip()) -> bool:
            return text.decode(tokens).strip() == wanted

        yield TaskSample(pictures.conversation(item.image, item.question), _task_steps(text, item), is_right)


def _task_steps(text: Tokenizer, item: TaskQuestion) -> int:
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


def _model_info(checkpoint: Checkpoint, spec: ModelSpec, weights: CanonicalWeights) -> ModelInfo:
    return ModelInfo(
        name=checkpoint.name,
        architecture=spec.architecture,
        hidden_size=spec.decoder.hidden_size,
        vocab_size=spec.decoder.vocab_size,
        parameters=weights.parameter_count,
        licence=checkpoint.licence,
        source=checkpoint.source,
        weights_sha256=checkpoint.weights_sha256,
        spec={"vision": to_json(spec.vision), "connector": to_json(spec.connector), "decoder": to_json(spec.decoder)},
    )
