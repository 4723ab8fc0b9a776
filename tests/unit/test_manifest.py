"""The manifest's reader, writer and JSON Schema, the latter judged by the jsonschema package."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pocketvlm.errors import BundleError
from pocketvlm.runtime.manifest import dump_manifest
from pocketvlm.runtime.manifest_reader import check_relative_path, parse_manifest
from pocketvlm.toolchain.manifest_schema import SCHEMA_PATH, dump_schema

BundleAt = Callable[..., Path]
VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA_PATH.read_text(encoding="utf-8")))


@pytest.fixture
def text(bundle_at: BundleAt) -> str:
    return (bundle_at() / "manifest.json").read_text(encoding="utf-8")


def parse(raw: Any) -> Any:
    return parse_manifest(json.dumps(raw))


def test_the_schema_in_the_repository_is_up_to_date() -> None:
    assert SCHEMA_PATH.read_text(encoding="utf-8") == dump_schema()
    jsonschema.Draft202012Validator.check_schema(json.loads(dump_schema()))


def test_what_the_writer_writes_is_valid_and_read_back_equal(text: str) -> None:
    VALIDATOR.validate(json.loads(text))
    manifest = parse_manifest(text)
    canonical = dump_manifest(manifest)
    VALIDATOR.validate(json.loads(canonical))
    assert json.loads(canonical) == json.loads(text)
    assert parse_manifest(canonical) == manifest
    assert dump_manifest(parse_manifest(canonical)) == canonical


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, item in items for leaf in leaves(item, (*path, key)))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(data=st.data())
def test_reader_and_schema_agree_on_types(text: str, data: st.DataObject) -> None:
    raw = json.loads(text)
    path = data.draw(st.sampled_from(leaves(raw)[1:]))
    parent = raw
    for key in path[:-1]:
        parent = parent[key]
    values: list[Any] = [None, True, 1, 1.5, -1, "x", "", [], {}, ["x"], [1, 1], {"x": 1}]
    change = data.draw(st.sampled_from(["delete", "add", *values]))
    if change == "delete":
        del parent[path[-1]]
    elif change == "add":
        assume(isinstance(parent, dict))
        parent["surplus"] = 1
    else:
        parent[path[-1]] = change
    refused = ""
    try:
        parse(raw)
    except BundleError as error:
        refused = error.message
    # The reader also checks what no schema of types can say: ranges, paths, one value against another.
    if not refused or re.search(r"expected |unknown key|is missing", refused):
        assert VALIDATOR.is_valid(raw) == (not refused), refused


def changed(text: str, path: str, value: Any) -> Any:
    raw = json.loads(text)
    parent = raw
    *parents, last = path.split(".")
    for key in parents:
        parent = parent[int(key) if key.isdigit() else key]
    parent[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema.major", 2, "schema 2.0; this reader knows 1.x"),
        ("schema.major", 0, "schema 0.0"),
        ("schema", None, "no schema version"),
        ("tokenizer.file", "../tokenizer.json", "unsafe file path"),
        ("tokenizer.file", "/etc/passwd", "unsafe file path"),
        ("files.0.path", "a\\b", "unsafe file path"),
        ("tokenizer.file", "missing.json", "does not list it"),
        ("files.0.sha256", "0" * 63, "bad size or sha256"),
        ("files.0.bytes", -1, "bad size or sha256"),
        ("tiling.grids", [], "1 to 1000 grids"),
        ("tiling.grids", [[1, 1000]], "between 1x1 and 100x100"),
        ("tiling.tile_size", 0, "tile_size of 1 to 4096"),
        ("image.std", [1, 0, 1], "normalised"),
        ("variants", [], "no variant"),
        ("variants.0.kv_cache.capacity", 0, "kv_cache.capacity is 0, not between 1 and"),
        ("variants.0.kv_cache.layers", 1 << 63, "kv_cache.layers is"),
        ("variants.0.stages.decode.outputs.0.shape", [1, 0], "cannot have the shape [1, 0]"),
        ("variants.0.stages.decode.inputs", [], "stage decode has no inputs"),
        ("image_tokens.rows", 5000, "5000x"),
        (
            "tiling",
            {"policy": "single", "tile_size": 4096, "grids": [[9, 9]], "thumbnail": "never"},
            "more than 33554432 pixels",
        ),
        ("image.background", [0, 0, 256], "no colour"),
        ("generation.top_p", 0, "generation is out of range"),
        ("prompt.between", {"user>assistant": 1}, "expected str"),
        ("tiling.policy", "relaxed_aspekt", "is none of"),
        ("surplus", 1, "unknown key 'surplus'"),
    ],
)
def test_bad_values_are_named(text: str, path: str, value: Any, message: str) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json") as caught:
        parse(changed(text, path, value))
    assert message in caught.value.message


DEVICE = {"soc": "SM8750", "soc_model": 69, "architecture": 79, "qairt": "2.50.40"}


def for_the_npu(text: str, **device: Any) -> Any:
    """A manifest whose connector runs on the NPU; with changes to the device, or `soc=None` for none at all."""
    raw = json.loads(text)
    (variant,) = raw["variants"]
    variant["device"] = None if device == {"soc": None} else {**DEVICE, **device}
    variant["stages"]["connector"] |= {"engine": "onnxruntime-qnn", "engine_options": {"soc_model": "69", "htp_arch": "79"}}
    return raw


def test_what_runs_on_the_npu_names_its_device(text: str) -> None:
    assert parse(for_the_npu(text)).variants[0].device.soc == "SM8750"
    VALIDATOR.validate(for_the_npu(text))
    by_stage = for_the_npu(text, soc=None)
    by_variant = changed(text, "variants.0.engine", "onnxruntime-qnn")
    absent = changed(text, "variants.0.engine", "onnxruntime-qnn")
    del absent["variants"][0]["device"]
    for raw in (by_stage, by_variant, absent):
        with pytest.raises(BundleError, match="variant 'cpu' uses the engine onnxruntime-qnn and names no device"):
            parse(raw)
        assert not VALIDATOR.is_valid(raw)


@pytest.mark.parametrize("option", ["soc_model", "htp_arch"])
def test_the_engine_is_told_of_the_device_that_is_named(text: str, option: str) -> None:
    raw = for_the_npu(text)
    options = raw["variants"][0]["stages"]["connector"]["engine_options"]
    options[option] = "68"
    with pytest.raises(BundleError, match=rf"stage connector: engine option {option} is '68', the device's number is \d\d"):
        parse(raw)
    del options[option]
    parse(raw)
    raw = changed(text, "variants.0.engine", "onnxruntime-qnn")
    raw["variants"][0] |= {"device": DEVICE, "engine_options": {option: "68"}}
    with pytest.raises(BundleError, match=f"engine option {option} is '68'"):
        parse(raw)


def test_the_target_and_its_device_are_the_same_soc(text: str) -> None:
    raw = for_the_npu(text)
    raw["variants"][0]["target"] = "qnn:SM8750"
    parse(raw)
    # One that this version has no table row for is nothing wrong.
    new = for_the_npu(text, soc="SM9999")
    new["variants"][0]["target"] = "qnn:SM9999"
    parse(new)
    raw["variants"][0]["device"]["soc"] = "SM8550"
    with pytest.raises(BundleError, match=r"variant 'cpu' is for target 'qnn:SM8750', and its device\.soc is 'SM8550'"):
        parse(raw)


def test_stages_of_one_binary_say_that_they_share_it(text: str) -> None:
    raw = for_the_npu(text)
    stages = raw["variants"][0]["stages"]
    name = stages["connector"]["file"]
    for stage in ("vision_encoder", "connector"):
        stages[stage] |= {"engine": "onnxruntime-qnn", "engine_options": {}, "external_data": [name]}
    with pytest.raises(BundleError, match=f"{name} serves several stages, and the engine option shared_weights is missing"):
        parse(raw)
    for stage in ("vision_encoder", "connector"):
        stages[stage]["engine_options"] = {"shared_weights": "1"}
    parse(raw)


@pytest.mark.parametrize(
    "version",
    [
        "",
        "newest",
        "2",
        "2.",
        "v2.50",
        "2.50.",
        "2.50.40.1.2",
        "2.50\n",
        "2.\u0665\u0660",
        "-2.50",
        "9" * 5000,
        "2." + "9" * 5000,
    ],
)
def test_a_version_of_qairt_that_is_none_is_refused(text: str, version: str) -> None:
    raw = for_the_npu(text, qairt=version)
    with pytest.raises(BundleError, match=r"variant 'cpu': device\.qairt is .*, not a version such as 2\.50\.40"):
        parse(raw)
    # The package searches where the standard would, but lets the pattern's end stand before a line feed.
    assert version.endswith("\n") or not VALIDATOR.is_valid(raw)


@pytest.mark.parametrize("version", ["2.50", "2.50.40", "2.50.40.260831", "9999.999999.999999.999999"])
def test_versions_of_qairt(text: str, version: str) -> None:
    raw = for_the_npu(text, qairt=version)
    parse(raw)
    VALIDATOR.validate(raw)


def test_a_newer_minor_version_may_hold_more(text: str) -> None:
    raw = changed(text, "schema.minor", 7)
    raw["surplus"] = {"anything": 1}
    raw["variants"][0]["surplus"] = 1
    found = parse(raw)
    assert found.schema.minor == 7
    del raw["tokenizer"]
    with pytest.raises(BundleError, match="'tokenizer' is missing"):
        parse(raw)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"schema": {"major": "1"}}', " " * 4_194_305])
def test_what_is_no_manifest_is_refused(content: str) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        parse_manifest(content)


def test_a_file_listed_twice_is_refused(text: str) -> None:
    raw = json.loads(text)
    raw["files"].append(copy.deepcopy(raw["files"][0]))
    with pytest.raises(BundleError, match="lists a file twice"):
        parse(raw)


@given(st.text(alphabet="ab.-/\\~: \x00é", max_size=12))
def test_accepted_paths_stay_inside(path: str) -> None:
    try:
        check_relative_path(path)
    except BundleError:
        return
    root = Path("/root/of/bundle")
    assert (root / path).parts[: len(root.parts)] == root.parts
    assert ".." not in Path(path).parts
    assert path == Path(path).as_posix()
