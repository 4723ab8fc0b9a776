"""Checkpoint -> phone bundle, in one straight line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pocketvlm import __version__
from pocketvlm.runtime.manifest import (
    SCHEMA_MAJOR,
    SCHEMA_MINOR,
    Manifest,
    ModelInfo,
    SchemaVersion,
    VariantSpec,
    to_json,
)
from pocketvlm.toolchain.backends import BACKENDS
from pocketvlm.toolchain.backends.base import Lowered, LowerJob
from pocketvlm.toolchain.bundle import BundleWriter, check_replaceable
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.data import CalibrationData, calibrate, task_samples
from pocketvlm.toolchain.kept import RESULTS, Kept
from pocketvlm.toolchain.model import EagerModel
from pocketvlm.toolchain.prepare import Prepared, capacity_of, prepare
from pocketvlm.toolchain.progress import Progress
from pocketvlm.toolchain.quality import (
    REPORT_NAME,
    STEPS,
    QualityReport,
    check_thresholds,
    measure,
    measured_steps,
)
from pocketvlm.toolchain.quantize.decoder import DecoderQuantizer
from pocketvlm.toolchain.quantize.kv_cache import KvScales
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.resume import telling_what_is_kept, work_path
from pocketvlm.toolchain.spec import ModelSpec
from pocketvlm.toolchain.weights import CanonicalWeights

# An export that is estimated to take so long keeps what it has worked out, in case it is interrupted.
KEEP_FROM_SECONDS = 300
# Files that a backend writes, about: patch_embed, vision_encoder, connector, and all of the decoder.
_GRAPHS = 4


@dataclass(frozen=True, slots=True)
class Report:
    """What an export did. `quality` is by variant name."""

    bundle: Path
    manifest: Manifest
    quality: dict[str, QualityReport]


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
    with BundleWriter(output, expected.disk_bytes) as writer, telling_what_is_kept(output, progress):
        writer.copy(checkpoint.path("tokenizer.json"), prepared.tokenizer.file)
        spec = prepared.spec
        data, scales = calibrate(prepared, recipe, progress)
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
            task = task_samples(prepared, data.pictures)
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


def _tell_shortened_chunks(spec: ModelSpec, recipe: ExportRecipe, progress: Progress) -> None:
    for target in recipe.targets:
        capacity = capacity_of(BACKENDS.load(target)(target), spec, recipe)
        if recipe.chunk_size > capacity:
            told = f"chunk_size {recipe.chunk_size} is more than the cache of {target} holds"
            progress.note(f"{told}: its chunks are of {capacity} positions")


def _decoder(
    prepared: Prepared, data: CalibrationData, kept: Kept, resume: Callable[[], None], progress: Progress
) -> DecoderQuantizer:
    def begin(name: str, steps: int) -> Callable[[int], None]:
        progress.stage(name, steps)
        return progress.advance

    sequences = [*(item.embeddings[:, : prepared.capacity] for item in data.conversations), *data.sequences]
    method = prepared.estimate.method
    return DecoderQuantizer(prepared.spec.decoder, prepared.weights, method, sequences, begin, kept, resume)


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
