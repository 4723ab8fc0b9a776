"""What single commands print: bench, inspect, export, verify, list, doctor."""

from __future__ import annotations

import json
import platform
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from packaging.specifiers import SpecifierSet

from pocketvlm.errors import PocketVLMError, RecipeError, SettingError, UsageError
from pocketvlm.runtime.manifest_reader import parse_manifest
from pocketvlm.toolchain import packages, probe
from pocketvlm.toolchain.commands.origin import naming_origin
from pocketvlm.toolchain.devices.host import summarise
from pocketvlm.toolchain.progress import Progress
from pocketvlm.toolchain.quality import QualityReport, WholeQuality
from pocketvlm.toolchain.recipe import ExportRecipe

from .command_line import REPLY, BundleAt, Call


def test_bench_reports_medians(call: Call, bundle_at: BundleAt, picture: Path) -> None:
    bundle = bundle_at(chain=REPLY)
    options = ["--prompt-tokens", 20, "--new-tokens", 4, "--repetitions", 3]
    found = call("bench", bundle, "--image", picture, *options, "--json").json
    assert found["settings"] == {
        "prompt_tokens": 20,
        "new_tokens": 4,
        "repetitions": 3,
        "threads": None,
        "image": "picture.png",
    }
    assert list(found["results"]) == ["image cold", "image encoded"]
    for figures in found["results"].values():
        # The words are unknown to this tokenizer: one token each, and six image tokens beside them.
        assert figures["prompt_tokens"] == {"median": 26.0, "sd": 0.0}
        assert figures["new_tokens"]["median"] == 3.0
        assert figures["image_tokens"]["median"] == 6.0
        assert figures["ttft_ms"]["median"] > 0
    assert found["results"]["image cold"]["vision_ms"]["median"] > 0
    text = call("bench", bundle, *options, "--threads", 1, "--markdown").out
    assert re.search(r"^\| prompt_tokens \| 20 \|$", text, re.MULTILINE)
    assert "ttft_ms" in call("bench", bundle, *options).out
    short = call("bench", bundle, "--prompt-tokens", 1, "--json")
    assert (short.code, short.json["error"]["code"]) == (2, "usage")
    too_long = call("bench", bundle, "--prompt-tokens", 64)
    assert (too_long.code, too_long.out) == (2, "")
    assert "--prompt-tokens 64 does not fit into the bundle's 64 positions (give fewer)" in too_long.err


def test_bench_of_one_run_has_no_deviation(call: Call, bundle_at: BundleAt) -> None:
    bundle = bundle_at(chain=REPLY)
    options = ["--prompt-tokens", 20, "--new-tokens", 4, "--repetitions", 1]
    for form in ([], ["--markdown"]):
        text = call("bench", bundle, *options, *form).out
        assert "one run" in text
        assert "±" not in text
    found = call("bench", bundle, *options, "--json").json
    assert found["results"]["text"]["ttft_ms"]["sd"] is None


def test_bench_tells_its_progress(call: Call, bundle_at: BundleAt, picture: Path) -> None:
    options = ["--prompt-tokens", 20, "--new-tokens", 4, "--repetitions", 3]
    assert call("bench", bundle_at(chain=REPLY), "--image", picture, *options).err.splitlines() == [
        "find the length of the prompt",
        "image cold: one run to warm up and 3 to measure",
        "image encoded: one run to warm up and 3 to measure",
    ]


def test_bench_of_an_emulated_npu_says_so_everywhere(call: Call, bundle_at: BundleAt, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "emulated on this computer: says nothing about a phone"
    bundle = bundle_at(chain=REPLY)
    options = ["--prompt-tokens", 20, "--new-tokens", 4, "--repetitions", 2]
    here = call("bench", bundle, *options, "--json")
    assert (here.json["emulated"], here.json["backend_actual"]) == (False, "fake-cpu (fake)")
    assert set(here.json["stages"].values()) == {"fake"}
    assert told not in here.out + here.err
    # The scripted engine takes the NPU's place.
    monkeypatch.setattr("pocketvlm.runtime.placement.NPU_ENGINE", "fake")
    monkeypatch.setattr("pocketvlm.runtime.placement.emulated", lambda: True)
    result = call("bench", bundle, *options, "--json")
    assert result.json["emulated"] is True
    assert result.json["backend_actual"] == "fake-cpu (fake, emulated)"
    assert result.json["stages"].keys() >= {"patch_embed", "vision_encoder", "decode"}
    assert set(result.json["stages"].values()) == {"fake, emulated"}
    assert told in result.json["note"]
    assert result.err.startswith(f"warning: fake-cpu (fake, emulated): {told}, and an answer may take minutes\n")
    for what in ("warmed up", "run 1 of 2", "run 2 of 2"):
        assert re.search(rf"^text: {what}, \d+ s$", result.err, re.MULTILINE)
    for form in ([], ["--markdown"]):
        text = call("bench", bundle, *options, *form).out
        assert told in text.splitlines()[0]
        assert told in text.splitlines()[-1]


def test_bench_measures_without_caches(call: Call, bundle_at: BundleAt, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("pocketvlm.toolchain.devices.host.summarise", lambda runs: seen.append(runs) or {})
    call("bench", bundle_at(chain=REPLY), "--image", picture, "--new-tokens", 4, "--prompt-tokens", 20, "--json")
    cold, encoded = seen
    assert [run.image_was_cached for run in cold] == [False] * 5
    assert [run.image_was_cached for run in encoded] == [True] * 5
    # The template's one token before the image is all that two prompts share.
    assert {run.kv_prefix_reused for run in [*cold, *encoded]} == {1}


def test_summarise_gives_median_and_sample_deviation() -> None:
    class Run:
        def __getattr__(self, name: str) -> Any:
            return None if name != "ttft_ms" else self.__dict__["value"]

        def __init__(self, value: float) -> None:
            self.__dict__["value"] = value

    runs: Any = [Run(value) for value in (1.0, 5.0, 3.0, 11.0)]
    assert summarise(runs) == {"ttft_ms": {"median": 4.0, "sd": pytest.approx(float(np.std([1, 5, 3, 11], ddof=1)))}}
    assert summarise(runs[:1]) == {"ttft_ms": {"median": 1.0, "sd": None}}


def test_inspect_a_bundle(call: Call, bundle_at: BundleAt) -> None:
    bundle = bundle_at()
    found = call("inspect", bundle, "--json").json
    raw = json.loads((bundle / "manifest.json").read_text())
    assert (found["kind"], found["model"], found["tiling"]) == ("bundle", raw["model"], raw["tiling"])
    assert found["bytes"] == sum(
        path.stat().st_size for path in bundle.rglob("*") if path.is_file() and not path.name.startswith("manifest.json")
    )
    variant = found["variants"][0]
    assert variant["stages"]["decode"]["bytes"] == (bundle / "v/decoder.onnx").stat().st_size
    # prefill and decode share their file.
    assert variant["bytes"] == sum(path.stat().st_size for path in (bundle / "v").iterdir())
    text = call("inspect", bundle).out
    for word in ("tiny", "llava_next", "vision_encoder", "v/decoder.onnx", "int8 cache of 64 positions", "<user>"):
        assert word in text


@pytest.mark.parametrize(("size", "grid", "tiles"), [("8x4", [2, 1], 2), ("4X4", [1, 1], 1), ("12x12", [3, 3], 9)])
def test_inspect_size_is_the_tile_plan(call: Call, bundle_at: BundleAt, size: str, grid: list[int], tiles: int) -> None:
    thumbnail = tiles > 1
    plan = {"grid": grid, "tiles": tiles, "thumbnail": thumbnail, "image_tokens": 2 * (tiles + thumbnail)}
    bundle = bundle_at()
    assert call("inspect", bundle, "--size", size, "--json").json == plan
    assert f"grid {grid[0]}x{grid[1]}, {tiles} tiles" in call("inspect", bundle, "--size", size).out


def test_inspect_size_refuses_what_run_would(call: Call, bundle_at: BundleAt) -> None:
    call("inspect", bundle_at(), "--size", "100000x100000").failed(3, "100000x100000 pixels, more than the allowed")
    call("inspect", bundle_at(), "--size", "1000x2").failed(3, "one side is more than 200 times the other")


def test_an_unwritable_trace_is_known_before_the_answer(call: Call, bundle_at: BundleAt, tmp_path: Path) -> None:
    result = call("run", bundle_at(chain=REPLY), "w5", "--trace", tmp_path / "absent" / "trace.json")
    result.failed(5, "the trace cannot be written: No such file or directory")
    assert result.out == ""


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def test_export_hands_the_recipe_and_the_overrides_on(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []

    class Opened:
        def __enter__(self) -> str:
            return "opened"

        def __exit__(self, *_: object) -> None:
            calls.append(("closed",))

    class Checkpoint:
        @staticmethod
        def open(path: str, *, revision: str | None) -> Opened:
            calls.append(("open", path, revision))
            return Opened()

    def export_checkpoint(checkpoint: str, output: Path, recipe: Any, progress: Progress) -> None:
        progress.estimate(2_000_000, 3_000_000, 30)
        progress.stage("lower", 2)
        progress.advance()
        progress.note("[bold]note")
        calls.append((checkpoint, output, recipe))

    fake_module(monkeypatch, "pocketvlm.toolchain.checkpoint", Checkpoint=Checkpoint)
    fake_module(monkeypatch, "pocketvlm.toolchain.export", export_checkpoint=export_checkpoint)
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text("chunk_size: 64\nvision_batch: 2\n")
    options = ["-c", recipe_file, "--precision", "fp32", "--max-seq-len", 256, "--revision", "r1", "--target", "ort-cpu"]
    result = call("export", "owner/name", "-o", tmp_path / "bundle", *options)
    assert (result.code, result.out) == (0, f"{tmp_path / 'bundle'}\n")
    assert result.err.splitlines() == [
        "needs about 2.0 MB of memory, 3.0 MB of disk, 30 s on two idle cores",
        "lower",
        "[bold]note",
    ]
    assert calls[0] == ("open", "owner/name", "r1")
    assert calls[1][:2] == ("opened", tmp_path / "bundle")
    recipe = calls[1][2]
    assert (recipe.chunk_size, recipe.vision_batch, recipe.precision) == (64, 2, "fp32")
    assert (recipe.max_seq_len, recipe.targets) == (256, ("ort-cpu",))
    assert calls[2] == ("closed",)
    # What an NPU would heed is left out where the options want none, and that is said.
    recipe_file.write_text('targets: ["qnn:SM8750", ort-cpu]\nqnn: {vision_batch: 2, emulate: all}\n')
    result = call("export", "owner/name", "-o", tmp_path / "bundle", "-c", recipe_file, "--target", "ort-cpu")
    told = f"{recipe_file}: qnn.vision_batch, qnn.emulate: without effect on --target ort-cpu"
    assert (result.code, result.err.splitlines()[0]) == (0, told)
    assert calls[-2][2] == ExportRecipe()
    recipe_file.write_text("chunk_sise: 64")
    call("export", "owner/name", "-o", tmp_path / "bundle", "-c", recipe_file).failed(3, "did you mean 'chunk_size'")


ORIGINS = SettingError("max_seq_len", "`max_seq_len` 9 is too small", "leave it out, or add ort-cpu to `targets`; see `x y`")


@pytest.mark.parametrize(
    ("config", "given", "kind", "told"),
    [
        (
            "a/r.yaml",
            [],
            RecipeError,
            "a/r.yaml: max_seq_len 9 is too small (leave it out, or add ort-cpu to targets; see `x y`)",
        ),
        (
            "r.yaml",
            ["targets"],
            RecipeError,
            "r.yaml: max_seq_len 9 is too small (leave it out, or add --target ort-cpu; see `x y`)",
        ),
        (
            "r.yaml",
            ["max_seq_len"],
            UsageError,
            "--max-seq-len 9 is too small (leave it out, or add ort-cpu to targets; see `x y`)",
        ),
        (None, [], UsageError, "max_seq_len 9 is too small (leave it out, or add ort-cpu to targets; see `x y`)"),
    ],
)
def test_a_setting_is_named_by_the_recipe_or_the_option_that_it_came_from(
    config: str | None, given: list[str], kind: type[PocketVLMError], told: str
) -> None:
    with pytest.raises(kind) as caught, naming_origin(Path(config) if config else None, given):
        raise ORIGINS
    assert (type(caught.value), str(caught.value)) == (kind, told)


def test_a_recipe_is_named_in_errors_about_the_files_that_it_names() -> None:
    with pytest.raises(RecipeError, match=r"^r\.yaml: task t\.json: not a file \(check it\)$"), naming_origin(Path("r.yaml")):
        raise RecipeError("task t.json: not a file", "check it")


def test_verify_prints_what_was_found(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"prefill": "it shares weights", "decode": "it shares weights", "lm_head": "no numbers"}
    found = {
        "files": 7,
        "variants": {"cpu": {"prefill": 0.999912345}, "npu": {"connector": 0.5}},
        "not_run": {"npu": reasons, "other": {"connector": "it is for another device"}},
    }
    monkeypatch.setattr("pocketvlm.toolchain.commands.verify.verify_bundle", lambda path, progress: found)
    assert call("verify", "bundle", "--json").json == found
    text = call("verify", "bundle").out
    assert "7 files" in text
    assert "0.999912" in text
    assert "\ncpu: 1 of 1 stages compared\n" in text
    assert "\nnpu: 1 of 4 stages compared; not: prefill, decode (it shares weights); not: lm_head (no numbers)\n" in text
    assert "\nother: 0 of 1 stages compared; not: connector (it is for another device)\n" in text


def verifiable(directory: Path, contract: Any, engines: dict[str, str]) -> Path:
    """With a report of what the scripted engine gives; then some stages get other engines."""
    manifest = parse_manifest((directory / "manifest.json").read_text())
    (variant,) = manifest.variants
    quality = QualityReport({}, WholeQuality(1, 0.0, 1.0, 1.0, 1.0), probe.record(variant, directory))
    (directory / "report.json").write_text(json.dumps({"variants": {"cpu": quality.to_json()}}))
    changed = {name: replace(variant.stages[name], engine=engine) for name, engine in engines.items()}
    variant = replace(variant, stages={**variant.stages, **changed})
    contract.write_manifest(directory, replace(manifest, variants=(variant,)))
    return directory


def test_verify_compares_what_can_run(call: Call, bundle_at: BundleAt, contract: Any) -> None:
    whole = call("verify", verifiable(bundle_at(), contract, {}))
    assert whole.code == 0
    assert "cpu: 6 of 6 stages compared\n" in whole.out
    stages = ["patch_embed", "vision_encoder", "connector", "embed_tokens", "prefill", "decode"]
    assert whole.err.splitlines() == [f"cpu: {stage} ({number} of 6)" for number, stage in enumerate(stages, 1)]
    partly = verifiable(bundle_at(), contract, {"vision_encoder": "npu", "decode": "npu"})
    result = call("verify", partly)
    assert result.code == 0
    # Prefill and decode are one loop.
    assert (
        "cpu: 3 of 6 stages compared; not: vision_encoder, prefill, decode (engine 'npu' is not known; update PocketVLM)\n"
        in result.out
    )
    found = call("verify", partly, "--json").json
    assert found["variants"] == {"cpu": {"patch_embed": 1.0, "connector": 1.0, "embed_tokens": 1.0}}
    assert list(found["not_run"]["cpu"]) == ["vision_encoder", "prefill", "decode"]


def test_verify_that_has_compared_nothing_is_no_success(call: Call, bundle_at: BundleAt, contract: Any) -> None:
    nothing = verifiable(bundle_at(), contract, dict.fromkeys(contract.decoder_stages(contract.kv_spec()), "npu"))
    assert call("verify", nothing).code == 0
    every = [*contract.vision_stages(), *contract.decoder_stages(contract.kv_spec())]
    nothing = verifiable(bundle_at(), contract, dict.fromkeys(every, "npu"))
    call("verify", nothing).failed(5, r"no stage can be compared, since none runs here: engine 'npu' is not known \(update")
    assert call("verify", nothing, "--json").json["error"]["code"] == "environment"


def test_a_probe_of_nothing_but_zeros_agrees_with_itself() -> None:
    assert probe.compare({"lm_head": [0.0, 0.0]}, {"lm_head": (0.0, 0.0)}) == {"lm_head": 1.0}
    assert probe.compare({"lm_head": [0.0, 0.0]}, {"lm_head": (0.0, 1.0)}) == {"lm_head": 0.0}
    assert probe.compare({}, {"lm_head": (0.0, 1.0)}) == {"lm_head": 0.0}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_probe_that_gives_no_number_agrees_with_nothing(value: float) -> None:
    assert probe.compare({"lm_head": [0.0, 1.0]}, {"lm_head": (value, 1.0)}) == {"lm_head": 0.0}
    assert probe.compare({"lm_head": [value, 1.0]}, {"lm_head": (value, 1.0)}) == {"lm_head": 0.0}


def test_list_gives_the_registries(call: Call) -> None:
    found = call("list", "--json").json
    assert list(found) == ["architectures", "connectors", "tilings", "targets"]
    assert "llava" in found["architectures"]
    assert "ort-cpu" in found["targets"]
    assert call("list", "tilings").out.split() == found["tilings"]
    assert call("list", "targets", "--json").json == {"targets": found["targets"]}
    assert "connectors: mlp, " in call("list").out


def test_doctor_tells_what_this_machine_has(call: Call) -> None:
    found = call("doctor", "--target", "ort-cpu", "--json").json
    assert found["ok"] is True
    assert found["python"] == platform.python_version()
    assert found["memory"]["total_bytes"] == psutil.virtual_memory().total
    assert found["cpu"]["threads"] == psutil.cpu_count()
    packages = {item["name"]: item for item in found["packages"]}
    assert packages.keys() >= {"numpy", "onnxruntime", "typer", "torch"}
    assert packages["numpy"]["installed"] == np.__version__
    assert {item["needed_for"] for item in packages.values()} == {"runtime", "command line", "export", "targets qnn:*"}
    assert "onnxruntime" in call("doctor").out


def test_doctor_fails_for_what_is_missing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=999", "no-such-package==1.*; extra == 'export'", "ruff; extra == 'dev'"]
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda name: wanted)
    result = call("doctor")
    assert result.code == 5
    assert re.search(r"^error: .*numpy \(.* wanted >=999\) .*pocketvlm\[cli\]", result.err, re.MULTILINE)
    assert "no-such-package" not in result.err
    result = call("doctor", "--target", "ort-cpu", "--json")
    result.failed(5, "no-such-package .missing, wanted ==1")
    # One object, with all of the report.
    found = result.json
    assert (found["ok"], found["error"]["code"], found["memory"]["total_bytes"] > 0) == (False, "environment", True)
    assert [check["name"] for check in found["checks"] if not check["ok"]] == ["numpy", "no-such-package"]
    assert found["checks"][0]["fix"] == "pip install 'numpy>=999'"


@pytest.mark.parametrize("version", ["1.29.0", "1.29", "1.3.1", "2.13.0+cpu", "10.0", "0.18.6"])
@pytest.mark.parametrize(
    "wanted", ["", ">=1.29", ">=1.3", "==1.29.0", "==1.29", "==2.13.*", ">=0.18", "==1.*", ">=1.3,==1.29.*"]
)
def test_versions_are_compared_as_packaging_does(version: str, wanted: str) -> None:
    assert packages.satisfies(version, wanted) == SpecifierSet(wanted).contains(version)
