"""`pocketvlm inspect`"""

from __future__ import annotations

import re
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from pocketvlm.errors import UsageError
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.image import check_image_size
from pocketvlm.runtime.manifest import (
    MANIFEST_NAME,
    ImageSpec,
    ImageTokensSpec,
    TilingSpec,
    VariantSpec,
    to_json,
)
from pocketvlm.runtime.tiling import plan_tiles
from pocketvlm.runtime.vision_contract import check_sizes
from pocketvlm.toolchain.commands.output import print_json, print_line, print_pairs, print_table

_FIGURES = {
    "positions": "predictions compared",
    "logits_kl": "mean KL, nats",
    "top1_agreement": "same first token",
    "perplexity": "perplexity on prose",
    "reference_perplexity": "of the checkpoint",
}
_SIZE = re.compile(r"([0-9]{1,7})[xX]([0-9]{1,7})\Z")


def inspect(path: str, size: str | None, as_json: bool) -> None:
    """Describe a bundle or a checkpoint, or with `size` ("768x1536") how an image of that size is cut.

    JSON: for `size` the tile plan {"grid", "tiles", "thumbnail", "image_tokens"}; else an object whose "kind" is "bundle" or
    "checkpoint".

    Raises:
        UsageError: `size` is malformed.
        ImageError: an image of that size would be refused.
        PocketVLMError: see `Bundle.open`, `Checkpoint.open`.
    """
    width_height = None if size is None else _parse_size(size)
    place = Path(path)
    if (place / MANIFEST_NAME).exists() or (place.is_file() and zipfile.is_zipfile(place)):
        _inspect_bundle(place, width_height, as_json)
    else:
        _inspect_checkpoint(path, width_height, as_json)


def _parse_size(text: str) -> tuple[int, int]:
    match = _SIZE.match(text)
    if not match or not int(match[1]) or not int(match[2]):
        raise UsageError(f"--size {text!r} is no image size", "write it as WIDTHxHEIGHT in pixels, such as 768x1536")
    return int(match[1]), int(match[2])


def _inspect_bundle(path: Path, size: tuple[int, int] | None, as_json: bool) -> None:
    from pocketvlm.toolchain.quality import REPORT_NAME
    from pocketvlm.toolchain.verify import read_report

    with closing(Bundle.open(path, verify=False)) as bundle, bundle.named():
        manifest = bundle.manifest
        for variant in manifest.variants:
            check_sizes(manifest, variant)
        if size is not None:
            _show_plan(size, manifest.image, manifest.tiling, manifest.image_tokens, as_json)
            return
        sizes = {item.path: item.bytes for item in manifest.files}
        report = read_report(bundle) if REPORT_NAME in sizes else {}
    found = {
        "kind": "bundle",
        "schema": to_json(manifest.schema),
        "pocketvlm": manifest.pocketvlm,
        "bytes": sum(sizes.values()),
        "model": to_json(manifest.model),
        "tiling": to_json(manifest.tiling),
        "image": to_json(manifest.image),
        "image_tokens": to_json(manifest.image_tokens),
        "prompt": to_json(manifest.prompt),
        "generation": to_json(manifest.generation),
        "variants": [_variant(variant, sizes) for variant in manifest.variants],
        "quality": report,
    }
    if as_json:
        print_json(found)
    else:
        _print_bundle(found)


def _variant(variant: VariantSpec, sizes: dict[str, int]) -> dict[str, Any]:
    """A variant with the sizes of its files; stages that share a file count it once."""
    files = {name: [stage.file, *stage.external_data] for name, stage in variant.stages.items()}
    stages = {
        name: {**to_json(stage), "bytes": sum(sizes[file] for file in files[name])} for name, stage in variant.stages.items()
    }
    together = {file for names in files.values() for file in names}
    return {**to_json(variant), "stages": stages, "bytes": sum(sizes[file] for file in together)}


def _print_bundle(found: dict[str, Any]) -> None:
    model = found["model"]
    print_pairs(
        [
            ("model", f"{model['name']} ({model['architecture']}), {model['parameters'] / 1e6:.1f}M parameters"),
            ("licence", model["licence"]),
            ("source", model["source"]),
            ("bundle", f"{decimal(found['bytes'])}, written by PocketVLM {found['pocketvlm']}"),
            ("tiling", _tiling_line(found["tiling"], found["image_tokens"])),
            ("prompt", "; ".join(f"{sort}: {text!r}" for sort, text in found["prompt"]["start"].items())),
            ("generation prompt", "; ".join(f"{role}: {text!r}" for role, text in found["prompt"]["generation"].items())),
        ]
    )
    for variant in found["variants"]:
        cache, device = variant["kv_cache"], variant["device"]
        made_for = f"for {device['soc']} with QAIRT {device['qairt']} or newer, " if device else ""
        print_table(
            f"\n{variant['name']}: {made_for}{variant['precision']}, {decimal(variant['bytes'])}, engine {variant['engine']}, "
            f"{variant['vision_batch']} tiles a batch, {cache['dtype']} cache of {cache['capacity']} positions",
            ("stage", "file", "size, shared files in each", "kernels"),
            [
                (name, stage["file"], decimal(stage["bytes"]), ", ".join(f"{k} {n}" for k, n in stage["kernels"].items()))
                for name, stage in variant["stages"].items()
            ],
        )
        _print_quality(found["quality"].get("variants", {}).get(variant["name"], {}))


def _print_quality(quality: dict[str, Any]) -> None:
    stages, whole = quality.get("stages", {}), quality.get("whole", {})
    if stages:
        rows = [(name, f"{item['cosine']:.5f}", f"{item['sqnr_db']:.1f}") for name, item in stages.items()]
        print_table("against the checkpoint in float32", ("stage", "cosine", "SQNR dB"), rows)
    if quality.get("parts"):
        rows_of_parts = [
            (name, decimal(part["bytes"]), f"{part['compile_seconds']:.0f} s", decimal(part["compiler_bytes"]),
             ", ".join(f"{name} {cosine:.6f}" for name, cosine in part["cosines"].items()) or "not emulated")
            for name, part in quality["parts"].items()
        ]  # fmt: skip
        heads = ("binary", "size", "compiled in", "with memory", "cosine, emulated NPU to CPU")
        print_table("binaries", heads, rows_of_parts)
    print_pairs((_FIGURES[name], f"{value:.4g}") for name, value in whole.items() if name in _FIGURES)
    task = quality.get("task")
    if task:
        shares = f"{task['accuracy']:.1%} right, the checkpoint {task['reference_accuracy']:.1%}"
        print_pairs([("task", f"{task['questions']} questions, {shares}")])


def _inspect_checkpoint(path: str, size: tuple[int, int] | None, as_json: bool) -> None:
    from pocketvlm.toolchain.backends import BACKENDS
    from pocketvlm.toolchain.checkpoint import Checkpoint
    from pocketvlm.toolchain.estimate import estimate
    from pocketvlm.toolchain.prepare import describe
    from pocketvlm.toolchain.quantize import calibration
    from pocketvlm.toolchain.recipe import ExportRecipe
    from pocketvlm.toolchain.weights import CanonicalWeights

    with Checkpoint.open(path) as checkpoint:
        spec, rename = describe(checkpoint)
        if size is not None:
            _show_plan(size, spec.image, spec.tiling, spec.image_tokens, as_json)
            return
        weights = CanonicalWeights(checkpoint, spec, rename)
        recipe = ExportRecipe()
        tokenizer_bytes = checkpoint.path("tokenizer.json").stat().st_size
        planned = calibration.plans(spec, calibration.DEFAULT_IMAGES)
        needs = [BACKENDS.load(target)(target).needs(spec, recipe) for target in recipe.targets]
        expected = estimate(spec, recipe, planned, len(calibration.DEFAULT_PROMPTS), tokenizer_bytes, needs)
        found = {
            "kind": "checkpoint",
            "name": checkpoint.name,
            "architecture": spec.architecture,
            "parameters": weights.parameter_count,
            "bytes": checkpoint.weight_bytes,
            "licence": checkpoint.licence,
            "spec": to_json(spec),
            "estimate": {
                "ram_bytes": expected.ram_bytes,
                "disk_bytes": expected.disk_bytes,
                "seconds": round(expected.seconds, 1),
            },
        }
    if as_json:
        print_json(found)
        return
    vision, connector, decoder = spec.vision, spec.connector, spec.decoder
    print_pairs(
        [
            ("checkpoint", f"{found['name']} ({spec.architecture}), {weights.parameter_count / 1e6:.1f}M parameters"),
            ("licence", found["licence"]),
            ("vision", f"{vision.kind}, {vision.layers} layers of {vision.hidden_size}, {vision.image_size} pixels"),
            ("connector", f"{connector.kind}, {connector.input_size} to {connector.output_size}"),
            (
                "decoder",
                f"{decoder.kind}, {decoder.layers} layers of {decoder.hidden_size}, {decoder.heads} heads, "
                f"{decoder.kv_heads} of keys and values, vocabulary {decoder.vocab_size}",
            ),
            ("tiling", _tiling_line(to_json(spec.tiling), to_json(spec.image_tokens))),
            (
                "plain export",
                f"a bundle of about {decimal(expected.disk_bytes)}, with {decimal(expected.ram_bytes)} of memory "
                f"in {expected.seconds:.0f} s",
            ),
        ]
    )


def _tiling_line(tiling: dict[str, Any], tokens: dict[str, Any]) -> str:
    grids = ", ".join(f"{cols}x{rows}" for cols, rows in tiling["grids"])
    thumbnail = tiling["thumbnail"].replace("_", " ")
    return (
        f"{tiling['policy']}, tiles of {tiling['tile_size']} pixels in grids {grids}; thumbnail: {thumbnail}; "
        f"{tokens['rows']}x{tokens['cols']} tokens a tile, {tokens['arrangement'].replace('_', ' ')}"
    )


def _show_plan(size: tuple[int, int], image: ImageSpec, tiling: TilingSpec, tokens: ImageTokensSpec, as_json: bool) -> None:
    check_image_size(size, "such an image", image)
    plan = plan_tiles(*size, tiling, tokens)
    if as_json:
        print_json(plan.to_json())
        return
    cols, rows = plan.grid
    thumbnail = " and a thumbnail" if plan.thumbnail else ""
    print_line(f"{size[0]}x{size[1]}: grid {cols}x{rows}, {plan.tiles} tiles{thumbnail}, {plan.image_tokens} image tokens")
