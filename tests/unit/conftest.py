"""A bundle for the fake engine, small enough to check by hand.

Tiles of 4 x 4 pixels, two visual tokens each, hidden size 4. A tile whose pixels have the mean m becomes visual tokens of
the value m + 3: each of the three vision stages adds one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pocketvlm.runtime.manifest import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    FileSpec,
    GenerationSpec,
    ImageSpec,
    ImageTokensSpec,
    KvCacheSpec,
    Manifest,
    ModelInfo,
    PromptSpec,
    SchemaVersion,
    StageSpec,
    TensorSpec,
    TilingSpec,
    TokenizerSpec,
    VariantSpec,
    dump_manifest,
    manifest_hash,
    to_json,
)
from pocketvlm.toolchain.cli import main

from .command_line import Call, Result

HIDDEN, VOCABULARY, TILE = 4, 96, 4
USER, END, IMAGE, BOT = 1, 2, 3, 4


def kv_spec(**changes: Any) -> KvCacheSpec:
    """Two layers, two heads of size 2, 64 positions, chunks of 8."""
    return replace(KvCacheSpec("int8", "in_place", 2, 2, 2, 64, 8), **changes)


def tensor(name: str, dtype: Any, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def decoder_stages(cache: KvCacheSpec, chunk: int | str = "L", hidden: int = HIDDEN, vocabulary: int = VOCABULARY) -> Any:
    """Stages embed_tokens, prefill, decode as the contract wants them. A fixed chunk makes prefill a file of its own."""
    new = "present" if cache.protocol == "in_place" else "new"

    def graph(file: str, length: int | str) -> StageSpec:
        buffer = (1, cache.kv_heads, cache.capacity, cache.head_dim)
        columns = buffer if new == "present" else (1, cache.kv_heads, length, cache.head_dim)
        names = [f"{kind}.{layer}" for layer in range(cache.layers) for kind in ("key", "value")]
        inputs = [tensor("embeddings", "float32", 1, length, hidden), tensor("past_length", "int64", 1)]
        inputs += [tensor(f"past_{name}", cache.dtype, *buffer) for name in names]
        outputs = [tensor("logits", "float32", 1, vocabulary)]
        outputs += [tensor(f"{new}_{name}", cache.dtype, *columns) for name in names]
        return StageSpec(file, tuple(inputs), tuple(outputs))

    shared = chunk == "L"
    return {
        "embed_tokens": StageSpec(
            "v/embed.onnx", (tensor("token_ids", "int64", 1, "L"),), (tensor("embeddings", "float32", 1, "L", hidden),)
        ),
        "prefill": graph("v/decoder.onnx" if shared else "v/prefill.onnx", chunk),
        "decode": graph("v/decoder.onnx", "L" if shared else 1),
    }


def vision_stages(batch: int | str = "B") -> dict[str, StageSpec]:
    def stage(file: str, source: TensorSpec, target: TensorSpec) -> StageSpec:
        return StageSpec(file, (source,), (target,))

    pixels = tensor("pixels", "float32", batch, 3, TILE, TILE)
    patches = tensor("patches", "float32", batch, 2, 3)
    features = tensor("features", "float32", batch, 2, 3)
    return {
        "patch_embed": stage("v/patch.onnx", pixels, patches),
        "vision_encoder": stage("v/vision.onnx", patches, features),
        "connector": stage("v/connector.onnx", features, tensor("tokens", "float32", batch, 2, HIDDEN)),
    }


def vision_variant(stages: dict[str, StageSpec]) -> VariantSpec:
    return VariantSpec("v", "t", "fp32", "fake", {}, 4, stages, kv_spec(), {})


def write_tokenizer(path: Path) -> None:
    words = ["<unk>", "<user>", "<end>", "<image>", "<bot>", *(f"w{index}" for index in range(5, VOCABULARY))]
    built = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    built.decoder = decoders.Fuse()
    built.add_special_tokens([AddedToken(word, normalized=False) for word in ("<user>", "<end>", "<image>", "<bot>")])
    built.save(str(path))


def write_script(directory: Path, stage: StageSpec, rule: str, **more: Any) -> None:
    script = {"rule": rule, "inputs": to_json(stage)["inputs"], "outputs": to_json(stage)["outputs"], **more}
    (directory / stage.file).write_text(json.dumps(script))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """List the directory's files in the manifest and write it."""
    files = []
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST_NAME, MANIFEST_HASH_NAME):
            content = path.read_bytes()
            name = path.relative_to(directory).as_posix()
            files.append(FileSpec(name, len(content), hashlib.sha256(content).hexdigest()))
    write_manifest_text(directory, dump_manifest(replace(manifest, files=tuple(files))))


def write_manifest_text(directory: Path, text: str) -> None:
    """Write the manifest and its hash."""
    (directory / MANIFEST_NAME).write_text(text)
    (directory / MANIFEST_HASH_NAME).write_text(manifest_hash(text.encode()))


def make_bundle(
    directory: Path,
    *,
    batch: int | str = "B",
    chunk: int | str = "L",
    chain: dict[int, int] | None = None,
    stall: dict[str, list[float]] | None = None,
    cache: KvCacheSpec | None = None,
    generation: GenerationSpec | None = None,
) -> Path:
    """Write a whole bundle; `chain` and `stall` (by stage) script the fake engine."""
    cache = cache or kv_spec()
    stages = {**vision_stages(batch), **decoder_stages(cache, chunk)}
    (directory / "v").mkdir(parents=True)
    stall = stall or {}
    for name in ("patch_embed", "vision_encoder", "connector"):
        write_script(directory, stages[name], "mean", add=1, stall_on=stall.get(name, []))
    write_script(directory, stages["embed_tokens"], "embed")
    for name in ("prefill", "decode"):
        write_script(directory, stages[name], "decoder", chain=chain or {}, stall_on=stall.get("decoder", []))
    write_tokenizer(directory / "tokenizer.json")
    variant = VariantSpec("cpu", "fake-cpu", "fp32", "fake", {}, 2, stages, cache, {})
    manifest = Manifest(
        schema=SchemaVersion(1, 0),
        pocketvlm="0",
        model=ModelInfo("tiny", "test", HIDDEN, VOCABULARY, 0, "none", "none", "0" * 64, {}),
        tiling=TilingSpec(
            "llava_next", TILE, tuple((c, r) for c in (1, 2, 3) for r in (1, 2, 3)), "several_tiles", fit="stretch"
        ),
        image=ImageSpec((0, 0, 0), (1, 1, 1)),
        image_tokens=ImageTokensSpec(1, 2, "tile_by_tile"),
        prompt=PromptSpec(
            start={"user": "<user> "},
            between={"user>assistant": " <bot> ", "assistant>user": " <end> <user> "},
            end={"user": "", "assistant": " <end>"},
            generation={"user": " <bot>"},
            trim=(),
            image="<image>",
            image_token="<image>",
            images_first=False,
        ),
        tokenizer=TokenizerSpec("tokenizer.json", IMAGE, (END,)),
        generation=generation or GenerationSpec(),
        variants=(variant,),
        files=(),
    )
    write_manifest(directory, manifest)
    return directory


@pytest.fixture
def bundle_at(tmp_path: Path) -> Callable[..., Path]:
    """Makes a fake bundle in a fresh directory; see `make_bundle`."""
    count = iter(range(100))
    return lambda **script: make_bundle(tmp_path / f"bundle{next(count)}", **script)


@pytest.fixture
def contract() -> Any:
    """The helpers of this file, for tests that need a part of a bundle only."""

    class Contract:
        kv_spec = staticmethod(kv_spec)
        tensor = staticmethod(tensor)
        decoder_stages = staticmethod(decoder_stages)
        vision_stages = staticmethod(vision_stages)
        vision_variant = staticmethod(vision_variant)
        write_manifest = staticmethod(write_manifest)
        write_script = staticmethod(write_script)

    return Contract


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> Result:
        code = main([str(item) for item in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.full((4, 8, 3), 51, np.uint8)).save(path)
    return path
