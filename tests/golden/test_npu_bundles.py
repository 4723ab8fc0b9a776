"""Bundles for the NPU: what is in them, what runs here and what is refused, and how their export goes on."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data
import torch
from PIL import Image

from pocketvlm.errors import BundleError, EnvironmentFault, GateError, UsageError
from pocketvlm.runtime import VlmSession
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.manifest import manifest_hash
from pocketvlm.toolchain.backends.qnn.compiler import run_worker
from pocketvlm.toolchain.backends.qnn.emulation import record
from pocketvlm.toolchain.backends.qnn.static_ops import Attention
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.export import export_checkpoint
from pocketvlm.toolchain.progress import Progress, SilentProgress
from pocketvlm.toolchain.quantize.calibration import Conversation
from pocketvlm.toolchain.recipe import ExportRecipe, load_recipe
from pocketvlm.toolchain.resume import work_path
from pocketvlm.toolchain.verify import verify_bundle

from .tiny_bluelm_v import TinyBlueLMV


def export(checkpoint: Path, output: Path, recipe: ExportRecipe, progress: Progress | None = None) -> Bundle:
    with Checkpoint.open(str(checkpoint)) as opened:
        export_checkpoint(opened, output, recipe, progress or SilentProgress())
    return Bundle.open(output)


class Notes(SilentProgress):
    """Remembers the lines that stay, and the parts of the work."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def stage(self, name: str, total: int) -> None:
        self.lines.append(name)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Callable[[str], Path]:
    """A tiny BlueLM-V for CPU and two SoCs; `separate` has binaries that the emulation can run, and the graphs before them."""
    folder = tmp_path_factory.mktemp("qnn")
    # Of seeds 0 to 59 the one whose answer to the question below has the least near ties: 0.35 between the best two logits.
    TinyBlueLMV(positions=256, seed=55).save(folder / "checkpoint", [(1, 1), (2, 1)])
    base = load_recipe(recipe_file)
    base = replace(base, targets=("qnn:SM8750", "ort-cpu", "qnn:SM8550"), max_seq_len=256, chunk_size=32)

    def made(name: str) -> Path:
        if not (folder / name).exists():
            attention: Attention = "split" if name == "separate" else "joined"
            qnn = replace(base.qnn, weight_sharing=name != "separate", attention=attention)
            qnn = replace(qnn, layers_per_part=2, vision_batch=2, emulate="all", proxy=name == "separate")
            export(folder / "checkpoint", folder / name, replace(base, qnn=qnn)).close()
        return folder / name

    return made


def photograph() -> Image.Image:
    return Image.fromarray(skimage.data.chelsea())


def answer(bundle: Path, target: str) -> tuple[list[int], str]:
    question = {"role": "user", "content": [{"type": "image", "image": photograph()}, {"type": "text", "text": "What is it?"}]}
    with VlmSession.open(bundle, target=target) as session:
        stream = session.chat([question], max_new_tokens=6, temperature=0)
        for _ in stream:
            pass
        assert stream.metrics is not None
        return list(stream.token_ids), stream.metrics.backend_actual


def edited(bundle: Path, copy: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a bundle with another manifest, whose hash fits."""
    shutil.copytree(bundle, copy)
    raw = json.loads((copy / "manifest.json").read_text())
    change(raw)
    text = json.dumps(raw)
    (copy / "manifest.json").write_text(text)
    (copy / "manifest.json.sha256").write_text(manifest_hash(text.encode()))
    return copy


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch, bundles: Callable[[str], Path]) -> pytest.MonkeyPatch:
    """Until it is undone, a graph that is loaded fails the test."""
    for name in ("separate", "shared"):
        bundles(name)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **options: pytest.fail("loaded a graph"))
    return monkeypatch


def test_one_bundle_holds_two_socs_and_the_cpu(bundles: Callable[[str], Path]) -> None:
    bundle = Bundle.open(bundles("shared"))
    variants = {variant.target: variant for variant in bundle.manifest.variants}
    assert list(variants) == ["qnn:SM8750", "ort-cpu", "qnn:SM8550"]
    one, cpu, other = variants.values()
    assert one.device is not None
    assert (one.device.soc, one.device.soc_model, one.device.architecture) == ("SM8750", 69, 79)
    for stage in ("patch_embed", "embed_tokens"):
        assert one.stages[stage].file == other.stages[stage].file == cpu.stages[stage].file
    assert one.stages["prefill_positions"].file == other.stages["prefill_positions"].file
    assert one.chain("prefill") == ("prefill.0", "prefill.1")
    for number in range(2):
        assert one.stages[f"prefill.{number}"].external_data == one.stages[f"decode.{number}"].external_data
    sharing = {name for name in one.stages if "shared_weights" in one.engine_of(name)[1]}
    assert sharing == {f"{name}.{number}" for name in ("prefill", "decode") for number in range(2)}
    for stage in ("vision_encoder.0", "connector", "prefill.0", "lm_head"):
        engine, options = one.engine_of(stage)
        assert (engine, options["soc_model"], options["htp_arch"]) == ("onnxruntime-qnn", "69", "79")
    outward = {tensor.dtype for stage in one.stages.values() for tensor in (*stage.inputs, *stage.outputs)}
    assert outward == {"float32", "int8", "int64"}
    report = json.loads(bundle.path("report.json").read_text())
    found = report["variants"]["qnn-SM8750"]["parts"]
    assert found.keys() == {"vision_encoder.0", "vision_encoder.1", "connector", "decoder.0", "decoder.1", "lm_head"}
    emulated = {stage: cosine for part in found.values() for stage, cosine in part["cosines"].items()}
    assert emulated.keys() == one.stages.keys() - {"patch_embed", "embed_tokens", "prefill_positions", "decode_positions"}
    assert min(emulated.values()) >= 0.9999
    assert all(part["bytes"] > 1000 and part["compile_seconds"] > 0 for part in found.values())


def test_the_emulated_npu_answers_and_may_share_the_work_with_the_cpu(bundles: Callable[[str], Path]) -> None:
    bundle = bundles("separate")
    tokens, told = answer(bundle, "qnn:SM8750")
    assert told == "qnn:SM8750 (onnxruntime-qnn, emulated)"
    expected, told = answer(bundle, "qnn-cpu")
    assert told == "qnn-cpu (onnxruntime)"
    assert tokens == expected
    assert len(set(tokens)) > 3
    mixed, told = answer(bundle, "qnn:SM8550+ort-cpu")
    assert told == "qnn:SM8550+ort-cpu (vision: onnxruntime-qnn, emulated, decoder: onnxruntime)"
    # That decoder rounds activations to 8 bits: of a random model it may choose other tokens for the last digit of an image.
    assert 0 < len(mixed) <= 6
    other, told = answer(bundle, "ort-cpu+qnn:SM8750")
    assert told.endswith("(vision: onnxruntime, decoder: onnxruntime-qnn, emulated)")
    assert other == answer(bundle, "ort-cpu+qnn-cpu")[0]


def test_a_layers_cache_has_one_scale_wherever_it_is_read_or_written(bundles: Callable[[str], Path]) -> None:
    folder = bundles("separate") / "qnn-cpu"
    found: dict[str, set[float]] = {}
    for graph, layers in itertools.product(("prefill", "decode"), ((0, (0, 1)), (1, (2,)))):
        part, numbers = layers
        model = onnx.load(str(folder / f"{graph}.{part}.onnx"))
        for layer, kind in itertools.product(numbers, ("key", "value")):
            scales = found.setdefault(f"{kind}.{layer}", set())
            scales |= {scale_of(model, f"past_{kind}.{layer}"), scale_of(model, f"new_{kind}.{layer}")}
    assert len(found) == 6
    assert all(len(scales) == 1 for scales in found.values()), found
    assert len(set.union(*found.values())) == 6


def scale_of(model: onnx.ModelProto, value: str) -> float:
    """The one scale of an int8 input or output."""
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    scales = [
        constants[node.input[1]]
        for node in model.graph.node
        if (node.op_type == "DequantizeLinear" and node.input[0] == value)
        or (node.op_type == "QuantizeLinear" and node.output[0] == value)
    ]
    assert scales
    assert all(scale.shape == () and scale == scales[0] for scale in scales)
    return float(scales[0])


def test_the_emulation_repeats_the_numbers_at_export(bundles: Callable[[str], Path]) -> None:
    found = verify_bundle(bundles("separate"))
    assert not found["not_run"]
    assert min(found["variants"]["qnn-SM8550"].values()) > 0.999


def test_binaries_that_share_weights_are_not_run_on_the_emulation(bundles: Callable[[str], Path]) -> None:
    found = verify_bundle(bundles("shared"))
    assert list(found["not_run"]) == ["qnn-SM8750", "qnn-SM8550"]
    missing = found["not_run"]["qnn-SM8750"]
    assert list(missing) == ["prefill", "decode"]
    assert all("share weights" in reason for reason in missing.values())
    # What has a binary of its own is compared.
    compared = found["variants"]["qnn-SM8750"]
    assert list(compared) == ["patch_embed", "vision_encoder", "connector", "embed_tokens", "lm_head"]
    assert min(compared.values()) > 0.999
    with pytest.raises(EnvironmentFault, match="emulation cannot run"):
        VlmSession.open(bundles("shared"), target="qnn:SM8750")
    assert Bundle.open(bundles("shared")).variant().target == "ort-cpu"
    with pytest.raises(EnvironmentFault, match="emulation cannot run"):
        VlmSession.open(bundles("shared"), target="ort-cpu+qnn:SM8750")


def test_vision_of_a_bundle_for_phones_runs_on_the_emulation(bundles: Callable[[str], Path]) -> None:
    tokens, told = answer(bundles("shared"), "qnn:SM8750+ort-cpu")
    assert told == "qnn:SM8750+ort-cpu (vision: onnxruntime-qnn, emulated, decoder: onnxruntime)"
    assert len(tokens) == len(answer(bundles("shared"), "ort-cpu")[0])


def test_vision_may_have_float16_activations_and_the_decoder_stay_on_the_cpu(tmp_path: Path, recipe_file: Path) -> None:
    TinyBlueLMV(positions=256).save(tmp_path / "checkpoint", [(1, 1), (2, 1)])
    base = load_recipe(recipe_file)
    qnn = replace(base.qnn, stages=("vision",), vision_activations="float16", emulate="all")
    recipe = replace(base, targets=("ort-cpu", "qnn:SM8650"), qnn=qnn, max_seq_len=256)
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle", recipe)
    cpu, npu = bundle.manifest.variants
    assert npu.stages["decode"].file == cpu.stages["decode"].file
    assert npu.kv_cache == cpu.kv_cache
    report = json.loads(bundle.path("report.json").read_text())["variants"]["qnn-SM8650"]
    assert all(min(part["cosines"].values()) > 0.9999 for part in report["parts"].values())
    assert all(report["stages"][stage]["cosine"] > 0.9999 for stage in ("vision_encoder", "connector"))
    tokens, told = answer(tmp_path / "bundle", "qnn:SM8650")
    assert told == "qnn:SM8650 (vision: onnxruntime-qnn, emulated, decoder: onnxruntime)"
    assert len(tokens) == 6
    with pytest.raises(UsageError, match="leaves the other half to target ort-cpu"):
        export(tmp_path / "checkpoint", tmp_path / "other", replace(recipe, targets=("qnn:SM8650",)))


def test_without_a_wish_the_cpu_is_taken_where_the_npu_is_emulated(bundles: Callable[[str], Path]) -> None:
    assert Bundle.open(bundles("separate")).variant().target == "ort-cpu"


def test_binaries_of_a_newer_compiler_are_refused_before_they_are_loaded(
    bundles: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketvlm.runtime.devices.qairt_version", lambda: "2.49.1")
    with pytest.raises(EnvironmentFault, match=r"compiled by QAIRT 2\.50.*runtime here is QAIRT 2\.49"):
        Bundle.open(bundles("separate")).variant("qnn:SM8750")


def device_of(raw: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(variant["device"] for variant in raw["variants"] if variant["target"] == "qnn:SM8750")
    return found


def test_a_manifest_that_names_a_newer_compiler_is_refused_before_anything_is_loaded(
    bundles: Callable[[str], Path], tmp_path: Path, nothing_loads: pytest.MonkeyPatch
) -> None:
    newer = edited(bundles("separate"), tmp_path / "newer", lambda raw: device_of(raw).update(qairt="9.1.0"))
    for target in ("qnn:SM8750", "qnn:SM8750+ort-cpu"):
        with pytest.raises(EnvironmentFault, match=r"compiled by QAIRT 9\.1\.0; the runtime here is QAIRT 2\.\d+"):
            VlmSession.open(newer, target=target)
    assert Bundle.open(newer).variant("qnn:SM8550").target == "qnn:SM8550"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qairt": "newest"}, r"device\.qairt is 'newest'"),
        ({"architecture": 73}, "engine option htp_arch is '79', the device's number is 73"),
        ({"soc_model": 43}, "engine option soc_model is '69', the device's number is 43"),
    ],
)
def test_a_device_that_is_none_or_another_is_refused_before_anything_is_loaded(
    bundles: Callable[[str], Path], tmp_path: Path, nothing_loads: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.open(edited(bundles("shared"), tmp_path / "bundle", lambda raw: device_of(raw).update(change)))


def test_binaries_without_a_device_are_refused_before_anything_is_loaded(
    bundles: Callable[[str], Path], tmp_path: Path, nothing_loads: pytest.MonkeyPatch
) -> None:
    """The emulation would end this process."""
    without = edited(bundles("shared"), tmp_path / "bundle", lambda raw: raw["variants"][0].update(device=None))
    with pytest.raises(BundleError, match="'qnn-SM8750' uses the engine onnxruntime-qnn and names no device"):
        VlmSession.open(without, target="qnn:SM8750")


def test_another_soc_is_refused_by_name(bundles: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketvlm.runtime.devices.emulated", lambda: False)
    monkeypatch.setattr("pocketvlm.runtime.bundle.emulated", lambda: False)
    monkeypatch.setattr("pocketvlm.runtime.devices.soc_name", lambda: "SM8550")
    bundle = Bundle.open(bundles("separate"))
    with pytest.raises(EnvironmentFault, match=r"compiled for SM8750 \(architecture v79\); this machine's SoC is SM8550"):
        bundle.variant("qnn:SM8750")
    assert bundle.variant("qnn:SM8550").target == "qnn:SM8550"
    monkeypatch.setattr("pocketvlm.runtime.devices.soc_name", lambda: None)
    assert bundle.variant().target == "ort-cpu"


def test_an_interrupted_export_goes_on_with_what_was_compiled(
    tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TinyBlueLMV(positions=256).save(tmp_path / "checkpoint", [(1, 1), (2, 1)])
    base = load_recipe(recipe_file)
    recipe = replace(base, targets=("qnn:SM8750",), qnn=replace(base.qnn, emulate="none"), max_seq_len=256)
    recipe = replace(recipe, decoder_weights=replace(base.decoder_weights, method="distill"))
    monkeypatch.setattr("pocketvlm.toolchain.export.KEEP_FROM_SECONDS", 0)
    export(tmp_path / "checkpoint", tmp_path / "expected" / "bundle", recipe)
    calls: list[str] = []

    def interrupted(folder: Path, job: dict[str, Any], name: str, memory_bytes: int) -> tuple[dict[str, Any], int]:
        calls.append(name)
        if calls == ["vision_encoder", "connector", "decoder"]:
            raise KeyboardInterrupt
        return run_worker(folder, job, name, memory_bytes)

    monkeypatch.setattr("pocketvlm.toolchain.backends.qnn.compiler.run_worker", interrupted)
    left = work_path(tmp_path / "bundle")
    first, second = Notes(), Notes()
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "checkpoint", tmp_path / "bundle", recipe, first)
    assert not (tmp_path / "bundle").exists()
    kept = "2 compiled parts, the quantized decoder, ranges"
    assert first.lines[-1] == f"kept in {left}: {kept}; the same command goes on with it"
    assert not [line for line in first.lines if line.startswith(("an earlier export", "kept from before"))]
    for work in ("quantize.gptq.quantize_decoder", "quantize.distill.tune", "backends.qnn.calibrate.vision_ranges",
                 "backends.qnn.calibrate.decoder_ranges"):  # fmt: skip
        monkeypatch.setattr(f"pocketvlm.toolchain.{work}", lambda *args, **named: pytest.fail("done twice"))
    export(tmp_path / "checkpoint", tmp_path / "bundle", recipe, second)
    assert second.lines[0] == f"an earlier export has left in {left}: {kept}; what still fits is taken"
    told = [line.removeprefix("kept from before: ") for line in second.lines if line.startswith("kept from before: ")]
    works = ("GPTQ of the decoder", "distillation of the decoder")
    decoder = [f"{work}: INT4, LPBQ in blocks of 32" for work in works]
    assert told == ["ranges of the vision stages", *decoder, "ranges of the decoder"]
    assert "going on: 2 of 4 parts had been compiled for SM8750 before" in second.lines
    assert calls == ["vision_encoder", "connector", "decoder", "decoder", "lm_head"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "expected", "bundle"}
    expected, found = (Bundle.open(folder / "bundle").manifest.files for folder in (tmp_path / "expected", tmp_path))
    # The report tells how long the compiler took.
    assert [file for file in found if file.path != "report.json"] == [file for file in expected if file.path != "report.json"]
    # The CPU's stages, which no other variant of this bundle has, lie in a folder of their own.
    assert {path.name for path in (tmp_path / "bundle").iterdir() if path.is_dir()} == {"cpu", "qnn", "qnn-SM8750"}


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty"])
def test_a_damaged_binary_is_refused(
    bundles: Callable[[str], Path], tmp_path: Path, nothing_loads: pytest.MonkeyPatch, damage: str
) -> None:
    name = "qnn-SM8750/lm_head.bin"
    content = (bundles("separate") / name).read_bytes()
    content = {"cut": content[: len(content) // 2], "zeros": bytes(len(content)), "empty": b""}[damage]

    def fit(raw: dict[str, Any]) -> None:
        for item in raw["files"]:
            if item["path"] == name:
                item |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    damaged = edited(bundles("separate"), tmp_path / "damaged", lambda raw: None)
    (damaged / name).write_bytes(content)
    with pytest.raises(BundleError, match=r"lm_head\.bin: (\d+ bytes, the manifest says|sha256 differs)"):
        VlmSession.open(damaged, target="qnn:SM8750")
    # Where the manifest fits the damage, the NPU's runtime tells.
    nothing_loads.undo()
    fitting = edited(bundles("separate"), tmp_path / "fitting", fit)
    (fitting / name).write_bytes(content)
    with pytest.raises(BundleError, match=r"lm_head\.onnx: the NPU's runtime cannot load it"):
        VlmSession.open(fitting, target="qnn:SM8750")


def test_without_the_package_the_way_to_it_is_told(
    bundles: Callable[[str], Path], tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles("separate")
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    assert Bundle.open(bundle).variant().target == "ort-cpu"
    with pytest.raises(EnvironmentFault, match=r"onnxruntime-qnn is missing.*pocketvlm\[qnn\]"):
        VlmSession.open(bundle, target="qnn:SM8750")
    TinyBlueLMV(positions=256).save(tmp_path / "checkpoint", [(1, 1), (2, 1)])
    with pytest.raises(EnvironmentFault, match=r"onnxruntime-qnn is missing.*pocketvlm\[qnn\]"):
        export(tmp_path / "checkpoint", tmp_path / "out", replace(load_recipe(recipe_file), targets=("qnn:SM8750",)))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="no float32 form"):
        export(tmp_path / "checkpoint", tmp_path / "out", ExportRecipe(targets=("qnn:SM8750",), precision="fp32"))


@pytest.fixture
def sampled(tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> ExportRecipe:
    """For a checkpoint that is too large for the emulation, as it is told."""
    TinyBlueLMV(positions=256).save(tmp_path / "checkpoint", [(1, 1), (2, 1)])
    base = load_recipe(recipe_file)
    monkeypatch.setattr("pocketvlm.toolchain.backends.qnn.graphs.SMALL_PRODUCTS", 100_000)
    return replace(base, targets=("qnn:SM8750",), qnn=replace(base.qnn, layers_per_part=2), max_seq_len=256)


def test_of_a_graph_too_large_for_the_emulation_one_layer_is_emulated(tmp_path: Path, sampled: ExportRecipe) -> None:
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle", sampled)
    parts = json.loads(bundle.path("report.json").read_text())["variants"]["qnn-SM8750"]["parts"]
    emulated = {stage: cosine for part in parts.values() for stage, cosine in part["cosines"].items()}
    assert emulated.keys() >= {"vision_encoder.1, first layer", "prefill.1, first layer"}
    assert not emulated.keys() & {"vision_encoder.0", "vision_encoder.1", "prefill.0", "prefill.1"}
    assert min(emulated.values()) >= 0.9999


def test_to_leave_the_emulation_out_compiles_nothing_again(
    tmp_path: Path, sampled: ExportRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hint of a missed agreement advises; the parts of which a layer was sampled are the same without that."""

    def missed(*_: object) -> None:
        raise GateError("the emulated NPU gives other numbers", "leave it out")

    monkeypatch.setattr("pocketvlm.toolchain.backends.qnn.emulation.Emulation.check", missed)
    with pytest.raises(GateError, match="other numbers"):
        export(tmp_path / "checkpoint", tmp_path / "bundle", sampled)
    monkeypatch.setattr("pocketvlm.toolchain.backends.qnn.compiler.run_worker", lambda *_: pytest.fail("compiled again"))
    export(tmp_path / "checkpoint", tmp_path / "bundle", replace(sampled, qnn=replace(sampled.qnn, emulate="none")))


def test_a_batch_is_filled_with_real_tiles_for_the_comparison(bundles: Callable[[str], Path]) -> None:
    variant = Bundle.open(bundles("separate")).variant("qnn-cpu")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, *variant.stages["patch_embed"].inputs[0].shape[1:], generator=generator)
    embeddings = torch.randn(1, 40, variant.stages["lm_head"].inputs[0].shape[-1], generator=generator)
    sample = Conversation(Path("image.png"), None, None, pixels, embeddings)  # type: ignore[arg-type]
    patches = record(variant, bundles("separate"), sample, {"vision_encoder.0"})["vision_encoder.0"][0]["patches"]
    assert len(patches) == variant.vision_batch == 2
    np.testing.assert_array_equal(patches[0], patches[1])
