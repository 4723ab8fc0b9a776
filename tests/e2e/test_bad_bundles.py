"""Every bundle that must not be opened: damaged, incomplete, tampered with, or from another time."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from pocketvlm.runtime.manifest import manifest_hash
from pocketvlm.runtime.manifest_reader import parse_manifest
from pocketvlm.runtime.tokenizer import Tokenizer
from pocketvlm.toolchain.bundle import pack

from .conftest import Call

QUESTION = ["What is in this picture?", "--max-new-tokens", 4]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was loaded of a bundle: graphs and tokenizers."""
    found: list[str] = []
    session, open_tokenizer = onnxruntime.InferenceSession, Tokenizer.open

    def open_session(*arguments: Any, **options: Any) -> Any:
        found.append("graph")
        return session(*arguments, **options)

    def open_and_tell(path: Path, name: str) -> Tokenizer:
        found.append("tokenizer")
        return open_tokenizer(path, name)

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    monkeypatch.setattr(Tokenizer, "open", open_and_tell)
    return found


def refused(call: Call, bundle: Path, pattern: str, *, inspect: bool = True) -> None:
    """By every command that opens it: one line and, as JSON, the same as an object."""
    commands: list[list[object]] = [["run", bundle, *QUESTION], ["verify", bundle]]
    commands += [["inspect", bundle]] if inspect else []
    for command in commands:
        call(*command).failed(3, pattern)
        as_json = call(*command, "--json")
        as_json.failed(3, pattern)
        error = as_json.json["error"]
        assert error["code"] == "bad_bundle"
        assert error["message"] in as_json.err
        assert error["hint"] in as_json.err
    call("bench", bundle, "--repetitions", 1).failed(3, pattern)


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_an_intact_bundle_loads_what_the_tests_below_look_for(call: Call, bundle: Path, loaded: list[str]) -> None:
    assert call("run", bundle, *QUESTION).code == 0
    assert sorted(set(loaded)) == ["graph", "tokenizer"]


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_flipped_bit_is_named_before_anything_is_loaded(call: Call, bundle: Path, loaded: list[str], place: str) -> None:
    names = [item.path for item in parse_manifest((bundle / "manifest.json").read_text()).files]
    wanted = {".onnx", ".data", ".f32", ".json"}
    assert {Path(name).suffix for name in names} == wanted
    assert {"tokenizer.json", "report.json"} <= set(names)
    for name in names:
        path = bundle / name
        intact = path.read_bytes()
        flip(path, {"first": 0, "middle": len(intact) // 2, "last": -1}[place])
        pattern = rf"{name}: sha256 differs from the manifest.*copy the bundle again or export it again"
        call("run", bundle, *QUESTION).failed(3, pattern)
        call("verify", bundle, "--json").failed(3, pattern)
        path.write_bytes(intact)
    assert loaded == []


def test_truncated_missing_and_surplus_files(call: Call, bundle: Path, loaded: list[str]) -> None:
    for name in ("ort-cpu/language.data", "ort-cpu/decoder.onnx", "tokenizer.json", "report.json"):
        path = bundle / name
        intact = path.read_bytes()
        path.write_bytes(intact[:-1])
        refused(call, bundle, rf"{name}: {len(intact) - 1} bytes, the manifest says {len(intact)}")
        path.write_bytes(b"")
        refused(call, bundle, rf"{name}: 0 bytes, the manifest says {len(intact)}")
        path.unlink()
        refused(call, bundle, rf"{name}: missing from the bundle")
        path.write_bytes(intact)
    for name in ("ort-cpu/custom_op.so", ".DS_Store", "manifest.json.bak"):
        (bundle / name).write_bytes(b"x")
        refused(call, bundle, rf"{name}: not part of the bundle \(remove it")
        (bundle / name).unlink()
    assert loaded == []
    assert call("verify", bundle).code == 0


def as_link(bundle: Path, name: str) -> None:
    outside = bundle.parent / "outside"
    shutil.move(bundle / name, outside)
    (bundle / name).symlink_to(outside)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "ort-cpu", "ort-cpu/language.data", "manifest.json", "manifest.json.sha256"]
)
def test_links_are_not_followed(call: Call, bundle: Path, loaded: list[str], name: str) -> None:
    as_link(bundle, name)
    refused(call, bundle, rf"{name}: a link")
    assert loaded == []


def write_manifest(bundle: Path, content: bytes) -> None:
    """As one who tampers with a bundle would: the hash fits."""
    (bundle / "manifest.json").write_bytes(content)
    (bundle / "manifest.json.sha256").write_text(manifest_hash(content))


def rehash(bundle: Path, name: str) -> None:
    """Let the manifest say of the file what it is now."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    content = (bundle / name).read_bytes()
    for item in manifest["files"]:
        if item["path"] == name:
            item |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_manifest(bundle, json.dumps(manifest).encode())


def edited(bundle: Path, path: str, value: Any) -> None:
    """Set "a.0.c" of the manifest; `...` deletes it."""
    raw = json.loads((bundle / "manifest.json").read_text())
    place = raw
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    write_manifest(bundle, json.dumps(raw).encode())


STAGE = "variants.0.stages.decode"
TAMPERED: dict[str, tuple[str, Any, str]] = {
    "path upwards": ("files.0.path", "../../etc/passwd", r"unsafe file path '\.\./\.\./etc/passwd'"),
    "absolute path": ("files.0.path", "/etc/passwd", "unsafe file path '/etc/passwd'"),
    "tokenizer elsewhere": ("tokenizer.file", "../tokenizer.json", "unsafe file path"),
    "graph elsewhere": (f"{STAGE}.file", "/tmp/evil.onnx", "unsafe file path"),
    "weights elsewhere": (f"{STAGE}.external_data", ["ort-cpu/../../x.data"], "unsafe file path"),
    "unlisted graph": (f"{STAGE}.file", "ort-cpu/other.onnx", "does not list it"),
    "newer schema": ("schema.major", 2, r"schema 2\.\d; this reader knows 1\.x \(update PocketVLM"),
    "older schema": ("schema.major", 0, r"schema 0\.\d.*export the checkpoint again"),
    "no schema": ("schema", ..., r"no schema version"),
    "no tokenizer": ("tokenizer", ..., "'tokenizer' is missing"),
    "unknown key": ("signature", "x", "unknown key 'signature'"),
    "unknown policy": ("tiling.policy", "best", "'best' is none of"),
    "more layers than memory": ("variants.0.kv_cache.layers", 1 << 62, "kv_cache.layers is"),
    "grid larger than memory": ("tiling.tile_size", 4096 * 4096, "tile_size"),
    "tiles of another size": ("tiling.tile_size", 13, "stage patch_embed: pixels has the shape"),
    "tokens of another number": ("image_tokens.rows", 77, "stage connector: .* has the shape"),
    "no variant": ("variants", [], "no variant"),
    "size as text": ("variants.0.vision_batch", "4", "vision_batch: expected int"),
    "more than a float holds": ("tiling.alpha", 10**400, "is not a finite number"),
    "not a number": ("tiling.alpha", float("nan"), "alpha: nan is not a finite number"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_manifest(call: Call, bundle: Path, loaded: list[str], name: str) -> None:
    path, value, pattern = TAMPERED[name]
    edited(bundle, path, value)
    file = bundle / "manifest.json"
    for command in (["run", bundle, *QUESTION], ["verify", bundle], ["inspect", bundle, "--json"]):
        result = call(*command)
        assert result.code == 3, file.read_text()
        assert result.err.startswith(f"error: {bundle}: manifest.json")
        assert result.err.count("\n") == 1
        assert re.search(pattern, result.err), result.err
    assert loaded == []


def test_an_image_token_id_that_is_not_the_tokenizers(call: Call, bundle: Path) -> None:
    edited(bundle, "tokenizer.image_token_id", 7777)
    refused(call, bundle, "image_token_id is 7777, the tokenizer's id of", inspect=False)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * (5 << 20)],
    ids=["empty", "cut", "list", "binary", "deep", "huge"],
)
def test_a_manifest_that_is_none(call: Call, bundle: Path, content: bytes) -> None:
    write_manifest(bundle, content)
    refused(call, bundle, r"manifest\.json")


@pytest.mark.parametrize("location", ["../../secret", "ABSOLUTE", "*/_ORT_MEM_ADDR_/*"])
def test_a_graph_that_reaches_for_files_or_memory_outside(call: Call, bundle: Path, location: str) -> None:
    """Hashes are right, paths in the manifest, too: the graph itself names the place of its weights."""
    secret = bundle.parent / "secret"
    secret.write_bytes((bundle / "ort-cpu/vision.data").read_bytes())
    model = onnx.load(bundle / "ort-cpu/connector.onnx", load_external_data=False)
    tensor = next(item for item in model.graph.initializer if item.external_data)
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = str(secret) if location == "ABSOLUTE" else location
    (bundle / "ort-cpu/connector.onnx").write_bytes(model.SerializeToString())
    rehash(bundle, "ort-cpu/connector.onnx")
    call("run", bundle, *QUESTION).failed(3, r"connector\.onnx: ONNX Runtime 1\.29\.0 cannot load it")


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.sha256"])
def test_a_flipped_bit_in_the_manifest_is_named(call: Call, bundle: Path, loaded: list[str], name: str) -> None:
    intact = (bundle / name).read_bytes()
    chosen = random.Random(0)
    for _ in range(20):
        flip(bundle / name, chosen.randrange(len(intact)), chosen.randrange(8))
        refused(call, bundle, r"manifest\.json: sha256 differs from manifest\.json\.sha256")
        (bundle / name).write_bytes(intact)
    assert loaded == []


def test_a_tampered_manifest_never_crashes(call: Call, bundle: Path) -> None:
    """Flipped bits with a hash that fits: most are found by what the manifest then says."""
    intact = (bundle / "manifest.json").read_bytes()
    chosen = random.Random(0)
    codes = []
    for _ in range(100):
        content = bytearray(intact)
        content[chosen.randrange(len(intact))] ^= 1 << chosen.randrange(8)
        write_manifest(bundle, bytes(content))
        result = call("run", bundle, *QUESTION)
        codes.append(result.code)
        if result.code:
            result.failed(result.code, "")
    assert set(codes) <= {0, 3, 5}
    assert codes.count(3) > 70


def test_a_packed_bundle_is_judged_alike(call: Call, bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "tiny.zip"
    pack(bundle, archive)
    assert call("run", archive, *QUESTION).out == call("run", bundle, *QUESTION).out
    intact = archive.read_bytes()
    place = intact.index((bundle / "ort-cpu/language.data").read_bytes())
    flip(archive, place + 1000)
    call("run", archive, *QUESTION).failed(3, "damaged zip|sha256 differs")
    archive.write_bytes(intact[:-200])
    call("run", archive, *QUESTION).failed(3, "neither a bundle directory nor a whole zip|damaged zip")


def test_what_is_no_bundle(call: Call, pristine: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    call("run", nowhere, "hello", "--json").failed(3, "nowhere: no such bundle.*`pocketvlm export`")
    call("run", pristine, "hello").failed(3, r"tiny: no manifest\.json")
    call("run", pristine / "config.json", "hello").failed(3, "neither a bundle directory nor a whole zip")
    call("run", os.devnull, "hello").failed(3, "neither a bundle directory nor a whole zip")


def test_a_target_that_the_bundle_lacks(call: Call, bundle: Path) -> None:
    call("run", bundle, "hello", "--target", "qnn:SM8750").failed(2, r"no variant for 'qnn:SM8750' \(it has ort-cpu")
    edited(bundle, "variants.0.engine", "tensorrt")
    call("run", bundle, "hello").failed(5, "no variant of the bundle runs here: ort-cpu: engine 'tensorrt'")


@pytest.mark.parametrize(
    "report",
    [
        [],
        {"variants": 5},
        {"variants": {"ort-cpu": 7}},
        {"variants": {"ort-cpu": {"stages": {}, "whole": {}, "probes": {}}}},
        {"variants": {"ort-cpu": {"stages": {"connector": {"cosine": "x", "sqnr_db": 1.0}}}}},
    ],
)
def test_a_report_of_another_form(call: Call, bundle: Path, report: object) -> None:
    (bundle / "report.json").write_text(json.dumps(report))
    rehash(bundle, "report.json")
    for command in ("verify", "inspect"):
        call(command, bundle).failed(3, r"report\.json")
    assert call("run", bundle, *QUESTION).code == 0


@pytest.mark.parametrize("part", ["pre_tokenizer", "decoder"])
def test_a_tokenizer_whose_pattern_runs_away(bundle: Path, part: str) -> None:
    """The library panics, which is no Exception; in a process of its own, because it says so on stderr itself."""
    raw = json.loads((bundle / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "^(([a-z ])+.)+[A-Z]([a-z])+$\0"}, "behavior": "Isolated", "invert": False}
    replace_all = {"type": "Replace", "pattern": {"Regex": "(([a-z])+.)+[A-Z]([a-z])+$\0"}, "content": "x"}
    raw[part] = split if part == "pre_tokenizer" else replace_all
    (bundle / "tokenizer.json").write_text(json.dumps(raw))
    rehash(bundle, "tokenizer.json")
    command = [sys.executable, "-m", "pocketvlm", "run", str(bundle), "aaaaaaaaaaaaaaaa " * 1500]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_verify_notices_other_numbers(call: Call, bundle: Path, exported: Callable[[str], Path]) -> None:
    """A bundle whose hashes are right and whose weights are not those that were verified at export."""
    other = exported("fp32")
    raw = json.loads((bundle / "report.json").read_text())
    probes = raw["variants"]["ort-cpu"]["probes"]
    probes["connector"] = [-value for value in probes["connector"]]
    (bundle / "report.json").write_text(json.dumps(raw))
    call("verify", bundle).failed(3, r"report\.json: \d+ bytes|report\.json: sha256")
    rehash(bundle, "report.json")
    result = call("verify", bundle, "--json")
    result.failed(4, "stage connector gives other numbers here than at export.*cosine -")
    assert result.json["error"]["code"] == "gate_failed"
    assert call("verify", other, "--json").json["variants"]["ort-cpu"].keys() >= {"connector", "prefill", "decode"}
