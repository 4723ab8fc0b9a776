"""The command line from a checkpoint to an answer, and every way in which an export is asked for wrongly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.runtime import VlmSession
from pocketvlm.toolchain.bundle import pack

from .conftest import BUNDLES, Call, contents

Exported = Callable[[str], Path]
ASK = ["What is in this picture?", "--max-new-tokens", 8]


def test_from_a_checkpoint_to_an_answer(call: Call, pristine: Path, recipe: Path, photograph: Path, tmp_path: Path) -> None:
    bundle, trace = tmp_path / "new" / "bundle", tmp_path / "trace.json"
    exported = call("export", pristine, "-o", bundle, "-c", recipe, "--max-seq-len", 300, "--chunk-size", 50)
    # The path alone is the result; the estimate and the progress are for the eye.
    assert (exported.code, exported.out) == (0, f"{bundle}\n")
    assert exported.err.startswith("needs about ")
    told = ("calibrate", "write the graphs for ort-cpu", "writing decoder", "verify ort-cpu against the checkpoint")
    assert [line for line in told if f"\n{line}\n" not in exported.err] == []
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]

    verified = call("verify", bundle, "--json").json
    assert verified["files"] == len(contents(bundle)) - 2  # without the manifest and its hash
    assert min(verified["variants"]["ort-cpu"].values()) > 0.999999

    inspected = call("inspect", bundle, "--json").json
    variant, cache = inspected["variants"][0], inspected["variants"][0]["kv_cache"]
    assert (inspected["kind"], variant["precision"]) == ("bundle", "paper")
    assert (cache["dtype"], cache["capacity"], cache["chunk_size"]) == ("int8", 300, 50)
    assert variant["stages"]["prefill"]["kernels"]["MatMulNBits"] == 4 * 3 + 1
    assert inspected["quality"]["variants"]["ort-cpu"]["whole"]["positions"] > 0
    plan = call("inspect", bundle, "--size", "451x300", "--json").json
    assert plan == {"grid": [3, 2], "tiles": 6, "thumbnail": True, "image_tokens": 6 * (3 * 3 + 1) + 9}
    assert call("inspect", pristine, "--size", "451x300", "--json").json == plan

    answered = call("run", bundle, *ASK, "--image", photograph, "--json", "--trace", trace).json
    assert answered["tile_plan"] == plan
    assert answered["metrics"]["tiles"] == 7
    spans = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert spans >= {"patch_embed", "vision_encoder", "connector", "prefill", "decode"}
    plain = call("run", bundle, *ASK, "--image", photograph)
    assert (plain.code, plain.out, plain.err) == (0, answered["text"] + "\n", "")

    archive = tmp_path / "bundle.zip"
    pack(bundle, archive)
    assert call("run", archive, *ASK, "--image", photograph).out == plain.out
    sizes = ["--repetitions", 1, "--prompt-tokens", 40, "--new-tokens", 4]
    measured = call("bench", bundle, "--image", photograph, *sizes, "--json")
    assert measured.code == 0, measured.err
    assert call("inspect", pristine, "--json").json["kind"] == "checkpoint"


def test_the_command_line_answers_as_a_session(call: Call, exported: Exported, photograph: Path) -> None:
    bundle = exported("fp32")
    with VlmSession.open(bundle) as session:
        content = [{"type": "image", "image": photograph}, {"type": "text", "text": ASK[0]}]
        stream = session.chat([{"role": "user", "content": content}], max_new_tokens=8)
        text = "".join(stream)
    found = call("run", bundle, *ASK, "--image", photograph, "--json").json
    assert (found["text"], found["token_ids"]) == (text, list(stream.token_ids))


def test_a_bundle_names_its_kernels_on_arm_where_they_are_not_the_default(call: Call, exported: Exported) -> None:
    options = [
        json.loads((exported(name) / "manifest.json").read_text())["variants"][0]["engine_options"]
        for name in ("paper", "fp32", "fastest on ARM")
    ]
    assert options == [{"int8_products": "exact"}, {}, {"int8_products": "exact", "arm_kernels": "fastest"}]
    found, plain = (call("run", exported(name), *ASK, "--json").json for name in ("fastest on ARM", "paper"))
    assert found["token_ids"] == plain["token_ids"]


def test_a_bundle_is_replaced_by_a_newer_one(call: Call, pristine: Path, recipe: Path, bundle: Path, tmp_path: Path) -> None:
    before = contents(bundle)
    same = tmp_path / "same.yaml"
    same.write_text(json.dumps({**json.loads(recipe.read_text()), **BUNDLES["paper"]}))
    assert call("export", pristine, "-o", bundle, "-c", recipe, "--precision", "fp32").code == 0
    after = contents(bundle)
    assert after["ort-cpu/language.data"] != before["ort-cpu/language.data"]
    assert call("verify", bundle).code == 0
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]
    link = bundle.parent / "link"
    link.symlink_to(bundle)
    assert call("export", pristine, "-o", link, "-c", same).code == 0
    assert link.is_symlink()
    assert contents(bundle) == before


def test_blocks_that_do_not_divide_the_hidden_size(call: Call, pristine: Path, recipe: Path, tmp_path: Path) -> None:
    """64 columns in blocks of 128: the matrices and the embedding table are padded, and no figure suffers."""
    path = tmp_path / "wide.yaml"
    raw = json.loads(recipe.read_text())
    path.write_text(json.dumps({**raw, "decoder_weights": {"block_size": 128}, "embedding_bits": 8}))
    assert call("export", pristine, "-o", tmp_path / "bundle", "-c", path).code == 0
    quality = json.loads((tmp_path / "bundle/report.json").read_text())["variants"]["ort-cpu"]["stages"]
    assert quality["embed_tokens"]["cosine"] > 0.9999
    assert quality["decode"]["cosine"] > 0.8


def recipe_with(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "changed.yaml"
    path.write_text(json.dumps(changes))
    return path


BAD_RECIPES: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown key": ({"chunk_sise": 3}, 3, r"changed\.yaml: unknown key 'chunk_sise' \(did you mean 'chunk_size'"),
    "unknown key inside": ({"thresholds": {"kl": 1}}, 3, r"changed\.yaml\.thresholds: unknown key 'kl'"),
    "unknown target": ({"targets": ["ort-cpx"]}, 3, r"changed\.yaml: unknown target 'ort-cpx' \(did you mean ort-cpu"),
    "wrong type": ({"vision_batch": "4"}, 3, "vision_batch: expected int"),
    "no such image": ({"calibration": {"images": ["gone.png"]}}, 3, r"gone\.png' does not exist"),
    "no such text": ({"calibration": {"text": "gone.txt"}}, 3, r"gone\.txt' cannot be read"),
    "a task that is not there": ({"task": "gone.json"}, 3, r"changed\.yaml: task .*gone\.json: cannot be read"),
    "more positions than the model has": (
        {"max_seq_len": 513},
        3,
        r"changed\.yaml: max_seq_len 513 exceeds the model's 512 positions",
    ),
    "too few positions": ({"max_seq_len": 100}, 3, r"changed\.yaml: max_seq_len 100 is too small: .* \(raise it"),
    "settings of no target": (
        {"qnn": {"emulate": "all"}},
        3,
        r"changed\.yaml: qnn\.emulate would have no effect: no target is qnn",
    ),
    "prompts in another script": (
        {"calibration": {"prompts": ["What is it?", "Что здесь написано?"]}},
        3,
        r"changed\.yaml: calibration prompt 'Что здесь написано\?'.*any_script: true",
    ),
    "a threshold without a task": ({"thresholds": {"task": 0.5}}, 3, r"thresholds\.task needs a task"),
    "grids beyond the context": ({"tiling": {"grids": [[20, 20]]}}, 3, r"take \d+ positions, the model has 512"),
    "thresholds that nothing meets": (
        {"calibration": {"tokens": 64}, "thresholds": {"stage_cosine": 1, "logits_kl": 0, "top1": 1}},
        4,
        "differs too much from the checkpoint: .*vision_encoder cosine 0.9.*logits KL.*set other thresholds",
    ),
}


@pytest.mark.parametrize("name", BAD_RECIPES)
def test_bad_recipe(name: str, call: Call, pristine: Path, bundle: Path, tmp_path: Path) -> None:
    changes, code, pattern = BAD_RECIPES[name]
    before = contents(bundle.parent)
    for output in (bundle, bundle.parent / "new"):
        call("export", pristine, "-o", output, "-c", recipe_with(tmp_path, **changes)).failed(code, pattern)
    # The old bundle is as it was, and no new one, whole or not, has come.
    assert contents(bundle.parent) == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]
    assert call("run", bundle, *ASK).code == 0


def test_a_bad_calibration_image(call: Call, pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    path = recipe_with(tmp_path, calibration={"images": ["text.png"]})
    call("export", pristine, "-o", tmp_path / "bundle", "-c", path).failed(3, r"text\.png is not an image")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", r"words\.txt' is empty"),
        (b"a b c", r"words\.txt' is too short: 5 characters"),
        (bytes(range(256)) * 20, r"words\.txt' is not UTF-8 text"),
        (b"\x00\x01\x02 " * 1000, r"words\.txt' is binary"),
    ],
)
def test_a_bad_calibration_text(content: bytes, pattern: str, call: Call, pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(content)
    path = recipe_with(tmp_path, calibration={"text": "words.txt"})
    call("export", pristine, "-o", tmp_path / "bundle", "-c", path).failed(3, pattern)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("options", "code", "pattern"),
    [
        (["--target", "ort-gpu"], 2, r"unknown target 'ort-gpu' \(did you mean ort-cpu"),
        (["--max-seq-len", 513], 2, "--max-seq-len 513 exceeds the model's 512 positions"),
        (["--max-seq-len", 100], 2, r"--max-seq-len 100 is too small: .* take \d+ positions \(raise it"),
        (["--max-seq-len", 0], 2, "max-seq-len"),
        (["--chunk-size", 5000], 2, "less than or equal to 4096"),
        (["-c", "gone.yaml"], 3, r"gone\.yaml: cannot be read: No such file"),
        (["--precision", "int2"], 2, "precision"),
    ],
)
def test_bad_options(
    options: list[object], code: int, pattern: str, call: Call, pristine: Path, recipe: Path, tmp_path: Path
) -> None:
    given = options if "-c" in options else ["-c", recipe, *options]
    call("export", pristine, "-o", tmp_path / "bundle", *given).failed(code, pattern)
    assert list(tmp_path.iterdir()) == []


def test_options_and_recipe_are_blamed_for_what_is_theirs(call: Call, pristine: Path, tmp_path: Path) -> None:
    path = recipe_with(tmp_path, precision="fp32", lm_head_bits=4)
    for options, code, told in (
        (["--target", "qnn:SM8650"], 3, r"changed\.yaml: precision is fp32, and target qnn:SM8650 has no float32 form"),
        (["--target", "qnn:SM8650", "--precision", "fp32"], 2, r"error: --precision is fp32, and target qnn:SM8650 has no"),
        (["--target", "qnn:SM8650", "--precision", "paper"], 3, r"changed\.yaml: lm_head_bits: 4 .* add --target ort-cpu\)$"),
        (["--max-seq-len", 513], 2, r"error: --max-seq-len 513 exceeds"),
    ):
        call("export", pristine, "-o", tmp_path / "bundle", "-c", path, *options).failed(code, told)
    path = recipe_with(tmp_path, targets=["qnn:SM8650"], lm_head_bits=4)
    call("export", pristine, "-o", tmp_path / "bundle", "-c", path).failed(3, r"lm_head_bits: 4 .* add ort-cpu to targets\)$")


def test_any_script_is_for_prompts_too_and_chunks_beyond_the_cache_are_told(
    call: Call, pristine: Path, recipe: Path, tmp_path: Path
) -> None:
    raw = json.loads(recipe.read_text())
    calibration = {**raw["calibration"], "prompts": ["Что здесь написано?"], "any_script": True}
    path = recipe_with(
        tmp_path, **{**raw, "calibration": calibration, "precision": "fp32", "chunk_size": 400, "max_seq_len": 300}
    )
    exported = call("export", pristine, "-o", tmp_path / "bundle", "-c", path)
    assert exported.code == 0, exported.err
    assert "\nchunk_size 400 is more than the cache of ort-cpu holds: its chunks are of 300 positions\n" in exported.err
    inspected = call("inspect", tmp_path / "bundle", "--json").json
    assert inspected["variants"][0]["kv_cache"]["chunk_size"] == 300


def test_an_output_that_is_no_bundle_is_left_alone(call: Call, pristine: Path, recipe: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "photos").mkdir(parents=True)
    (place / "photos" / "cat.jpg").write_bytes(b"cat")
    (place / "file").write_text("file")
    shutil.copytree(pristine, place / "checkpoint")
    before = contents(place)
    for output, code, pattern in (
        (place / "file", 2, "file: exists and is not a directory"),
        (place / "photos", 2, r"photos: exists and holds cat\.jpg, which is not part of a bundle"),
        (place, 2, "exists and holds .*, which is not part of a bundle"),
        (place / "checkpoint", 2, "exists and holds .*, which is not part of a bundle"),
        (place / "file" / "bundle", 2, "bundle: .*file is a file, not a folder"),
        ("/", 2, "cannot be a bundle's directory"),
        ("", 2, "'--output': it is empty"),
        (place / ("x" * 300), 5, "cannot be written: File name too long|File name too long"),
    ):
        result = call("export", pristine, "-o", output, "-c", recipe)
        result.failed(code, pattern)
        # Told before the checkpoint has been read.
        assert code == 5 or result.err.count("\n") == 1
    assert contents(place) == before


def test_a_bundle_with_something_of_the_users_in_it_is_left_alone(
    call: Call, pristine: Path, recipe: Path, bundle: Path
) -> None:
    (bundle / "notes.txt").write_text("mine")
    before = contents(bundle)
    call("export", pristine, "-o", bundle, "-c", recipe).failed(2, r"holds notes\.txt, which is not part of a bundle")
    assert contents(bundle) == before
