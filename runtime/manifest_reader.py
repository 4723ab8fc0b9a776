"""Reads `manifest.json` strictly, and checks what its parts say of each other."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

from pocketvlm.errors import BundleError
from pocketvlm.runtime.grid_policies import GRID_POLICIES
from pocketvlm.runtime.manifest import (
    LEAST_TEMPERATURE,
    MANIFEST_NAME,
    MAX_GRID_PIXELS,
    MAX_GRID_SIDE,
    MAX_GRIDS,
    MAX_MANIFEST_BYTES,
    MAX_TILE_SIZE,
    NPU_ENGINE,
    QAIRT_VERSION,
    SCHEMA_MAJOR,
    SCHEMA_MINOR,
    Manifest,
    VariantSpec,
)
from pocketvlm.runtime.strict_json import decode

_MAX_PATH = 1024
# Bounds for what normalises pixels: real values are near 1, and beyond these float32 makes noise of the image.
_SMALL, _LARGE = 1e-6, 1e6
_PART = re.compile(r"[A-Za-z0-9._+-]{1,100}\Z")


def check_relative_path(path: str, where: str = MANIFEST_NAME) -> None:
    """Refuse every path that could leave the bundle.

    Args:
        where: what names it, for messages.

    Raises:
        BundleError: for an absolute path, a drive, a backslash, an empty part, "." or "..", more than 1,024 characters.
    """
    if len(path) > _MAX_PATH:
        raise BundleError(f"{where}: file path of {len(path)} characters: {path[:40]!r}...", "it is not one of ours")
    parts = path.split("/")
    if PurePosixPath(path).is_absolute() or not all(_PART.match(part) and part not in (".", "..") for part in parts):
        raise BundleError(f"{where}: unsafe file path {path!r}", "the bundle was tampered with; export it again")


def parse_manifest(text: str) -> Manifest:
    """Read and check the text of `manifest.json`.

    Raises:
        BundleError: not JSON, a newer major schema, a missing or mistyped field, an unsafe or unlisted path.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(f"manifest.json is larger than {MAX_MANIFEST_BYTES} bytes", "it is not one of ours")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"manifest.json is not valid JSON: {error}", "copy the bundle again or export it again") from None
    version = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(version, dict) or not isinstance(version.get("major"), int) or not isinstance(version.get("minor"), int):
        raise BundleError("manifest.json has no schema version", "it is not a PocketVLM bundle")
    if version["major"] != SCHEMA_MAJOR:
        hint = "update PocketVLM" if version["major"] > SCHEMA_MAJOR else "export the checkpoint again"
        raise BundleError(
            f"manifest.json has schema {version['major']}.{version['minor']}; this reader knows {SCHEMA_MAJOR}.x", hint
        )
    manifest: Manifest = decode(Manifest, raw, "manifest.json", BundleError, ignore_unknown=version["minor"] > SCHEMA_MINOR)
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    listed = {item.path for item in manifest.files}
    if len(listed) != len(manifest.files):
        raise BundleError("manifest.json lists a file twice", "export the checkpoint again")
    named = [manifest.tokenizer.file]
    if manifest.image_tokens.newline:
        named.append(manifest.image_tokens.newline)
    for variant in manifest.variants:
        for stage in variant.stages.values():
            named += [stage.file, *stage.external_data]
    for path in [*listed, *named]:
        check_relative_path(path)
    for path in named:
        if path not in listed:
            raise BundleError(f"manifest.json uses {path!r} but does not list it under files", "export the checkpoint again")
    for item in manifest.files:
        if item.bytes < 0 or not re.fullmatch(r"[0-9a-f]{64}", item.sha256):
            raise BundleError(f"manifest.json: bad size or sha256 of {item.path!r}", "export the checkpoint again")
    tiling, tokens = manifest.tiling, manifest.image_tokens
    if tiling.policy not in GRID_POLICIES:
        known = ", ".join(sorted(GRID_POLICIES))
        raise BundleError(f"manifest.json.tiling.policy: {tiling.policy!r} is none of {known}", "update PocketVLM")
    if not 1 <= tiling.tile_size <= MAX_TILE_SIZE or not 1 <= len(tiling.grids) <= MAX_GRIDS:
        raise BundleError(f"manifest.json: tiling needs a tile_size of 1 to {MAX_TILE_SIZE} and 1 to {MAX_GRIDS} grids")
    if any(not 1 <= side <= MAX_GRID_SIDE for grid in tiling.grids for side in grid):
        raise BundleError(f"manifest.json: tiling grids must lie between 1x1 and {MAX_GRID_SIDE}x{MAX_GRID_SIDE}")
    if any(cols * rows * tiling.tile_size**2 > MAX_GRID_PIXELS for cols, rows in tiling.grids):
        raise BundleError(f"manifest.json: a tiling grid has more than {MAX_GRID_PIXELS} pixels")
    if not (1 <= tokens.rows <= 4096 and 1 <= tokens.cols <= 4096):
        raise BundleError(f"manifest.json: {tokens.rows}x{tokens.cols} image tokens a tile, not between 1x1 and 4096x4096")
    image, generation = manifest.image, manifest.generation
    if not 0 <= tiling.alpha <= 1:
        raise BundleError(f"manifest.json: tiling alpha is {tiling.alpha}, not between 0 and 1")
    if image.max_pixels < 1 or not _SMALL < image.rescale < _LARGE:
        raise BundleError("manifest.json: image rescale and max_pixels must be positive, and numbers of a sane size")
    if any(not _SMALL < deviation < _LARGE for deviation in image.std) or any(abs(mean) > _LARGE for mean in image.mean):
        raise BundleError("manifest.json: image mean and std are not numbers that pixels can be normalised with")
    if not all(0 <= value <= 255 for value in image.background):
        raise BundleError(f"manifest.json: image background {list(image.background)} is no colour of 0 to 255")
    if (
        0 < generation.temperature < LEAST_TEMPERATURE
        or generation.temperature < 0
        or generation.top_k < 0
        or not 0 < generation.top_p <= 1
        or not 0 <= generation.min_p <= 1
        or generation.repetition_penalty <= 0
    ):
        raise BundleError("manifest.json: a sampling default under generation is out of range")
    if not manifest.variants:
        raise BundleError("manifest.json holds no variant", "export the checkpoint again")
    for variant in manifest.variants:
        _check_variant(variant)


def _check_variant(variant: VariantSpec) -> None:
    _check_device(variant)
    cache = variant.kv_cache
    for name, value, most in (
        ("vision_batch", variant.vision_batch, 4096),
        ("kv_cache.layers", cache.layers, 4096),
        ("kv_cache.kv_heads", cache.kv_heads, 4096),
        ("kv_cache.head_dim", cache.head_dim, 4096),
        ("kv_cache.capacity", cache.capacity, 1 << 24),
        ("kv_cache.chunk_size", cache.chunk_size, 1 << 16),
    ):
        if not 1 <= value <= most:
            raise BundleError(f"manifest.json: variant {variant.name!r}: {name} is {value}, not between 1 and {most}")
    for name, stage in variant.stages.items():
        where = f"manifest.json: variant {variant.name!r}, stage {name}"
        if stage.engine_options and not stage.engine:
            raise BundleError(f"{where} has engine_options without an engine", "export the checkpoint again")
        if not stage.inputs or not stage.outputs:
            raise BundleError(f"{where} has no inputs or no outputs")
        for tensor in (*stage.inputs, *stage.outputs):
            if not tensor.shape or any(isinstance(size, int) and not 1 <= size < 1 << 31 for size in tensor.shape):
                raise BundleError(f"{where}: {tensor.name} cannot have the shape {list(tensor.shape)}")


def _check_device(variant: VariantSpec) -> None:
    """What runs on an NPU was compiled for a device, and the engine must be told of the same one."""
    where, device = f"manifest.json: variant {variant.name!r}", variant.device
    if device is None:
        if NPU_ENGINE in (variant.engine, *(stage.engine for stage in variant.stages.values())):
            raise BundleError(f"{where} uses the engine {NPU_ENGINE} and names no device", "export the checkpoint again")
        return
    if not re.fullmatch(QAIRT_VERSION, device.qairt):
        raise BundleError(
            f"{where}: device.qairt is {device.qairt[:40]!r}, not a version such as 2.50.40", "export the checkpoint again"
        )
    # What comes behind the colon of a target is the device that it is for.
    _, _, wanted = variant.target.partition(":")
    if wanted and wanted != device.soc:
        raise BundleError(
            f"{where} is for target {variant.target[:40]!r}, and its device.soc is {device.soc[:40]!r}",
            "export the checkpoint again",
        )
    for stage in variant.stages:
        engine, options = variant.engine_of(stage)
        for option, value in (("soc_model", device.soc_model), ("htp_arch", device.architecture)):
            told = options.get(option, str(value))
            if engine == NPU_ENGINE and told != str(value):
                raise BundleError(
                    f"{where}, stage {stage}: engine option {option} is {told[:40]!r}, the device's number is {value}",
                    "export the checkpoint again",
                )
    _check_common_binaries(variant, where)


def _check_common_binaries(variant: VariantSpec, where: str) -> None:
    """Stages of one binary say so: opened without, they would end the process on an emulation."""
    users: dict[str, list[str]] = {}
    for name, stage in variant.stages.items():
        if variant.engine_of(name)[0] == NPU_ENGINE:
            for file in dict.fromkeys(stage.external_data):
                users.setdefault(file, []).append(name)
    for file, names in users.items():
        silent = [name for name in names if "shared_weights" not in variant.engine_of(name)[1]]
        if len(names) > 1 and silent:
            raise BundleError(
                f"{where}, stage {silent[0]}: {file} serves several stages, and the engine option shared_weights is missing",
                "export the checkpoint again",
            )
