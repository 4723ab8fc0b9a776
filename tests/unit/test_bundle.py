from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pocketvlm.errors import BundleError, EnvironmentFault, UsageError
from pocketvlm.runtime import VlmSession, devices
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.manifest import MAX_MANIFEST_BYTES, NPU_ENGINE, DeviceSpec, manifest_hash

from .conftest import write_manifest_text

MakeBundle = Callable[..., Path]


def pack(directory: Path, archive: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(archive, "w", compression) as packed:
        for path in sorted(directory.rglob("*")):
            packed.write(path, path.relative_to(directory))
    return archive


def change_manifest(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((directory / "manifest.json").read_text())
    change(content)
    write_manifest_text(directory, json.dumps(content))


def test_a_whole_bundle_opens(bundle_at: MakeBundle) -> None:
    directory = bundle_at()
    bundle = Bundle.open(directory)
    assert bundle.manifest.model.name == "tiny"
    assert bundle.path("tokenizer.json") == directory / "tokenizer.json"
    assert len(bundle.sha256("tokenizer.json")) == 64
    with pytest.raises(BundleError, match="does not list"):
        bundle.path("other.json")
    bundle.close()
    assert directory.is_dir()


def test_a_flipped_bit_is_named_before_anything_is_loaded(bundle_at: MakeBundle) -> None:
    directory = bundle_at()
    path = directory / "v/decoder.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"v/decoder\.onnx: sha256 differs"):
        Bundle.open(directory)
    Bundle.open(directory, verify=False)


def damage_truncate(directory: Path) -> None:
    path = directory / "v/decoder.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def damage_surplus(directory: Path) -> None:
    (directory / "v/evil.so").write_bytes(b"x")


def damage_missing(directory: Path) -> None:
    (directory / "v/decoder.onnx").unlink()


def damage_link(directory: Path) -> None:
    outside = directory.parent / "outside.json"
    shutil.move(directory / "tokenizer.json", outside)
    (directory / "tokenizer.json").symlink_to(outside)


def damage_folder_link(directory: Path) -> None:
    shutil.move(directory / "v", directory.parent / "v")
    (directory / "v").symlink_to(directory.parent / "v")


def damage_manifest_link(directory: Path) -> None:
    shutil.move(directory / "manifest.json", directory.parent / "m.json")
    (directory / "manifest.json").symlink_to(directory.parent / "m.json")


def damage_no_manifest(directory: Path) -> None:
    (directory / "manifest.json").unlink()


def damage_manifest_text(directory: Path) -> None:
    content = b"\xff\xfe{"
    (directory / "manifest.json").write_bytes(content)
    (directory / "manifest.json.sha256").write_text(manifest_hash(content))


def damage_manifest_flipped(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"alpha": 0.1', b'"alpha": 0.5'))


def damage_no_manifest_hash(directory: Path) -> None:
    (directory / "manifest.json.sha256").unlink()


def damage_manifest_hash(directory: Path) -> None:
    (directory / "manifest.json.sha256").write_text("0" * 64)


def damage_manifest_hash_link(directory: Path) -> None:
    shutil.move(directory / "manifest.json.sha256", directory.parent / "m.sha256")
    (directory / "manifest.json.sha256").symlink_to(directory.parent / "m.sha256")


def damage_manifest_cut(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_bytes(path.read_bytes()[:200])


def damage_manifest_huge(directory: Path) -> None:
    (directory / "manifest.json").write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))


def damage_schema(directory: Path) -> None:
    change_manifest(directory, lambda content: content["schema"].update(major=2))


def damage_path_up(directory: Path) -> None:
    change_manifest(directory, lambda content: content["files"][0].update(path="../tokenizer.json"))


def damage_path_absolute(directory: Path) -> None:
    change_manifest(directory, lambda content: content["files"][0].update(path="/etc/passwd"))


def damage_fifo(directory: Path) -> None:
    os.mkfifo(directory / "pipe")


def damage_manifest_fifo(directory: Path) -> None:
    (directory / "manifest.json").unlink()
    os.mkfifo(directory / "manifest.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, r"v/decoder\.onnx: \d+ bytes, the manifest says \d+"),
        (damage_surplus, r"v/evil\.so: not part of the bundle"),
        (damage_missing, r"v/decoder\.onnx: missing"),
        (damage_link, r"tokenizer\.json: a link"),
        (damage_folder_link, r"v: a link"),
        (damage_manifest_link, r"manifest\.json: a link"),
        (damage_manifest_fifo, r"manifest\.json: neither a file nor a folder"),
        (damage_no_manifest, r"no manifest\.json"),
        (damage_manifest_text, "not UTF-8"),
        (damage_manifest_cut, r"manifest\.json: sha256 differs from manifest\.json\.sha256"),
        (damage_manifest_flipped, r"manifest\.json: sha256 differs from manifest\.json\.sha256"),
        (damage_no_manifest_hash, r"manifest\.json\.sha256: missing"),
        (damage_manifest_hash, r"manifest\.json: sha256 differs"),
        (damage_manifest_hash_link, r"manifest\.json\.sha256: a link"),
        (damage_manifest_huge, "larger than"),
        (damage_schema, r"schema 2\.0.*update PocketVLM"),
        (damage_path_up, "unsafe file path"),
        (damage_path_absolute, "unsafe file path"),
        (damage_fifo, "neither a file nor a folder"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_damage_is_refused_and_named(bundle_at: MakeBundle, damage: Callable[[Path], None], message: str, verify: bool) -> None:
    directory = bundle_at()
    damage(directory)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(directory, verify=verify)
    assert "\n" not in str(caught.value)


def test_messages_name_the_bundle_as_it_was_given_and_the_file_by_its_place_in_it(
    bundle_at: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = bundle_at()
    monkeypatch.chdir(directory.parent)
    archive = pack(directory, Path("packed.zip"))
    graph, tokenizer = directory / "v/decoder.onnx", directory / "tokenizer.json"
    script = graph.read_bytes()

    def told(message: str, name: str = directory.name) -> None:
        with pytest.raises(BundleError) as caught:
            VlmSession.open(name)
        assert re.match(rf"{name}: {message}", caught.value.message), caught.value.message

    graph.write_bytes(script[:-1])
    told(r"v/decoder\.onnx: \d+ bytes, the manifest says")
    graph.write_bytes(script[::-1])
    told(r"v/decoder\.onnx: sha256 differs")
    told(r"v/decoder\.onnx: sha256 differs", str(pack(directory, archive)))
    rehash(directory)
    told(r"v/decoder\.onnx: not a script of the fake engine")
    told(r"v/decoder\.onnx: not a script of the fake engine", str(pack(directory, archive)))
    graph.write_bytes(script)
    tokenizer.write_text("{")
    rehash(directory)
    told(r"tokenizer\.json is no valid tokenizer\.json")
    told(r"tokenizer\.json is no valid tokenizer\.json", str(pack(directory, archive)))
    change_manifest(directory, lambda content: content["variants"][0]["stages"].pop("connector"))
    told(r"manifest\.json: variant 'cpu' has no stage 'connector'")
    change_manifest(directory, lambda content: content.pop("tokenizer"))
    told(r"manifest\.json: 'tokenizer' is missing")
    (directory / "v/evil.so").touch()
    (directory / "manifest.json").unlink()
    told(r"no manifest\.json")


def rehash(directory: Path) -> None:
    """Let the manifest say of the files what they are now."""

    def fit(raw: dict[str, Any]) -> None:
        for item in raw["files"]:
            content = (directory / item["path"]).read_bytes()
            item |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    change_manifest(directory, fit)


def test_what_is_no_bundle_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    for path, message in ((tmp_path / "absent", "no such bundle"), (tmp_path / "file", "neither"), (tmp_path, "no manifest")):
        with pytest.raises(BundleError, match=message):
            Bundle.open(path)


def test_a_zip_is_unpacked_beside_and_removed_on_close(bundle_at: MakeBundle, tmp_path: Path) -> None:
    directory = bundle_at()
    bundle = Bundle.open(pack(directory, tmp_path / "b.zip"))
    place = bundle.path("v/decoder.onnx")
    assert place.read_bytes() == (directory / "v/decoder.onnx").read_bytes()
    assert tmp_path not in place.parents
    bundle.close()
    bundle.close()
    assert not place.exists()


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return place


def hostile_zip(path: Path, kind: str) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        if kind == "up":
            packed.writestr("../evil", "x")
        elif kind == "absolute":
            packed.writestr("/evil", "x")
        elif kind == "link":
            entry = zipfile.ZipInfo("link")
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            packed.writestr(entry, "/etc/passwd")
        elif kind == "both":
            packed.writestr("a", "x")
            packed.writestr("a/b", "x")
        elif kind == "deep":
            packed.writestr("a/" * 30_000 + "b", "x")
        else:
            packed.writestr("bomb", b"\0" * 10_000_000, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("up", "unsafe"),
        ("absolute", "unsafe"),
        ("link", "link or special"),
        ("both", "a is a file and a folder"),
        ("deep", "file path of 60001 characters"),
        ("bomb", "compressed"),
    ],
)
def test_a_hostile_zip_writes_nothing(tmp_path: Path, temporary: Path, kind: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.open(hostile_zip(tmp_path / "b.zip", kind))
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_a_compressed_or_damaged_zip_is_refused(bundle_at: MakeBundle, tmp_path: Path, temporary: Path) -> None:
    directory = bundle_at()
    with pytest.raises(BundleError, match="compressed"):
        Bundle.open(pack(directory, tmp_path / "deflated.zip", zipfile.ZIP_DEFLATED))
    archive = pack(directory, tmp_path / "b.zip")
    content = bytearray(archive.read_bytes())
    position = content.index(b"past_length")
    content[position] ^= 1
    archive.write_bytes(content)
    with pytest.raises(BundleError, match="damaged zip"):
        Bundle.open(archive)
    assert list(temporary.iterdir()) == []


def test_a_full_disk_is_an_environment_fault(
    bundle_at: MakeBundle, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(bundle_at(), tmp_path / "b.zip")

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pocketvlm.runtime.bundle._copy", no_room)
    with pytest.raises(EnvironmentFault, match="No space left"):
        Bundle.open(archive)
    assert list(temporary.iterdir()) == []


def with_variants(bundle: Bundle, *engines: str) -> Bundle:
    first = bundle.manifest.variants[0]
    variants = tuple(replace(first, name=f"{engine}-name", target=f"{engine}-target", engine=engine) for engine in engines)
    return Bundle(bundle.directory, replace(bundle.manifest, variants=variants))


def test_the_first_variant_that_runs_here_is_taken(bundle_at: MakeBundle) -> None:
    bundle = with_variants(Bundle.open(bundle_at()), "npu", "fake", "onnxruntime")
    assert bundle.variant().engine == "fake"
    assert bundle.variant("onnxruntime-target").engine == "onnxruntime"
    assert bundle.variant("npu-name").engine == "npu"


def test_a_stage_whose_engine_is_not_here_makes_its_variant_one_that_does_not_run(bundle_at: MakeBundle) -> None:
    bundle = with_variants(Bundle.open(bundle_at()), "fake", "onnxruntime")
    first, second = bundle.manifest.variants
    connector = replace(first.stages["connector"], engine="npu")
    first = replace(first, stages={**first.stages, "connector": connector})
    bundle = Bundle(bundle.directory, replace(bundle.manifest, variants=(first, second)))
    assert bundle.variant() == second


def test_only_the_variant_in_use_must_take_the_tiles_of_the_manifest(bundle_at: MakeBundle) -> None:
    bundle = with_variants(Bundle.open(bundle_at()), "npu", "fake")
    other, taken = bundle.manifest.variants
    patch_embed = other.stages["patch_embed"]
    pixels = replace(patch_embed.inputs[0], shape=("B", 3, 99, 99))
    other = replace(other, stages={**other.stages, "patch_embed": replace(patch_embed, inputs=(pixels,))})
    bundle = Bundle(bundle.directory, replace(bundle.manifest, variants=(other, taken)))
    assert bundle.variant() == taken
    with pytest.raises(BundleError, match="'npu-name', stage patch_embed: pixels has the shape"):
        bundle.variant("npu-target")


def test_an_unknown_target_names_the_known_ones(bundle_at: MakeBundle) -> None:
    with pytest.raises(UsageError, match="fake-target, onnxruntime-target"):
        with_variants(Bundle.open(bundle_at()), "fake", "onnxruntime").variant("qnn")


@pytest.mark.parametrize("target", ["", "fake-name+", "+fake-name"])
def test_half_a_wish_is_no_variant(bundle_at: MakeBundle, target: str) -> None:
    with pytest.raises(UsageError, match="the bundle has no variant for ''"):
        with_variants(Bundle.open(bundle_at()), "fake", "onnxruntime").variant(target)


def test_no_variant_that_runs_here_is_an_environment_fault(bundle_at: MakeBundle) -> None:
    with pytest.raises(EnvironmentFault, match=r"npu-name: engine 'npu' is not known \(update PocketVLM, or export"):
        with_variants(Bundle.open(bundle_at()), "npu").variant()


def for_the_npu(bundle: Bundle, *, shared: bool = False) -> Bundle:
    """With one variant, for an SM8750; `shared`: the decoder's binaries share weights."""
    (variant,) = with_variants(bundle, NPU_ENGINE).manifest.variants
    options = {"shared_weights": "1"} if shared else {}
    stages = {name: replace(variant.stages[name], engine=NPU_ENGINE, engine_options=options) for name in ("prefill", "decode")}
    variant = replace(variant, target="qnn:SM8750", device=DeviceSpec("SM8750", 69, 79, "2.50.40"))
    variant = replace(variant, stages={**variant.stages, **stages})
    return Bundle(bundle.directory, replace(bundle.manifest, variants=(variant,)))


@pytest.mark.parametrize(
    ("here", "shared", "hint"),
    [
        ({"package": False}, False, r"pip install 'pocketvlm\[qnn\]'.*, or export the checkpoint for ort-cpu"),
        ({}, False, "target qnn:SM8750 asks for the emulation, which takes minutes for an answer, or export the"),
        ({}, True, r"run it on a SM8750, or export with qnn\.weight_sharing: false, or export the checkpoint for ort-cpu"),
        ({"soc": "SM8550"}, False, "export it for qnn:SM8550 or ort-cpu, or"),
        ({"qairt": "2.40.0"}, False, "install a newer onnxruntime-qnn here"),
    ],
)
def test_where_no_variant_runs_the_hints_are_those_of_the_reasons(
    bundle_at: MakeBundle, monkeypatch: pytest.MonkeyPatch, here: dict[str, Any], shared: bool, hint: str
) -> None:
    if not here.get("package", True):
        monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    else:
        monkeypatch.setitem(sys.modules, "onnxruntime_qnn", ModuleType("onnxruntime_qnn"))
        monkeypatch.setattr(devices, "qairt_version", lambda: here.get("qairt", "2.50.40"))
    for module in ("bundle", "devices"):
        monkeypatch.setattr(f"pocketvlm.runtime.{module}.emulated", lambda: "soc" not in here)
    monkeypatch.setattr(devices, "soc_name", lambda: here.get("soc"))
    with pytest.raises(EnvironmentFault, match="no variant of the bundle runs here: onnxruntime-qnn-name: ") as caught:
        for_the_npu(Bundle.open(bundle_at()), shared=shared).variant()
    assert re.match(hint, caught.value.hint), caught.value.hint
