"""The NPU's graphs: their float form against the eager model, the quantized one on the CPU, and the emulated NPU."""

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
from numpy.typing import NDArray
from PIL import Image

from pocketvlm.errors import BundleError, EnvironmentFault, GateError, UsageError
from pocketvlm.runtime import VlmSession
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.manifest import StageSpec, manifest_hash
from pocketvlm.toolchain.backends.onnx_graph import TensorFile
from pocketvlm.toolchain.backends.qnn import parts
from pocketvlm.toolchain.backends.qnn.calibrate import mask_scores
from pocketvlm.toolchain.backends.qnn.compiler import Compiler, compile_options, run_worker
from pocketvlm.toolchain.backends.qnn.emulation import AGREEMENT, Emulation, agreement, least_agreement, record
from pocketvlm.toolchain.backends.qnn.float_graph import float_run
from pocketvlm.toolchain.backends.qnn.graphs import Graph, int4_reader
from pocketvlm.toolchain.backends.qnn.half_graph import write_half
from pocketvlm.toolchain.backends.qnn.qdq_graph import quantizations, tensors_of, write_qdq
from pocketvlm.toolchain.backends.qnn.socs import SOCS
from pocketvlm.toolchain.backends.qnn.static_graph import StaticGraph
from pocketvlm.toolchain.backends.qnn.static_ops import MASKED, Attention
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.export import export_checkpoint
from pocketvlm.toolchain.model import EagerModel
from pocketvlm.toolchain.prepare import Prepared, prepare
from pocketvlm.toolchain.progress import Progress, SilentProgress
from pocketvlm.toolchain.quantize.block import round_to_nearest
from pocketvlm.toolchain.quantize.calibration import Conversation
from pocketvlm.toolchain.recipe import ExportRecipe, Qnn, load_recipe
from pocketvlm.toolchain.resume import work_path
from pocketvlm.toolchain.torch_ops import EagerCache, rotary_table
from pocketvlm.toolchain.verify import verify_bundle

from .conftest import save_llava
from .tiny_bluelm_v import TinyBlueLMV

CAPACITY, CHUNK = 64, 8
CASES = {
    "clip": {"tower": "clip", "feature_layer": -2, "strategy": "default"},
    "clip, several layers": {"tower": "clip", "feature_layer": [-1, -3], "strategy": "full", "bias": False},
    "siglip, tied": {"tower": "siglip", "feature_layer": -1, "strategy": "full", "tied": True},
}
Array = NDArray[np.float32]


@pytest.fixture(params=list(CASES))
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> Prepared:
    save_llava(tmp_path / "checkpoint", **CASES[request.param])  # type: ignore[arg-type]
    with Checkpoint.open(str(tmp_path / "checkpoint")) as checkpoint:
        found = prepare(checkpoint, ExportRecipe())
        found.weights.keep_in_memory(1 << 40)
    return found


def positions(prepared: Prepared, past: int, length: int, capacity: int = CAPACITY) -> dict[str, Array]:
    """cos, sin and mask as written down in docs/npu.md, without the graph that the exporter makes of it."""
    decoder = prepared.spec.decoder
    cos, sin = (
        table[past : past + length].numpy()[None, :, None] for table in rotary_table(decoder.rope, decoder.head_dim, 256)
    )
    mask = np.zeros((1, 1, 1, capacity + length), np.float32)
    mask[..., past:capacity] = MASKED
    return {"cos": np.concatenate([cos, cos], 3), "sin": np.concatenate([-sin, sin], 3), "mask": mask}


def cosine(a: Array, b: Array) -> float:
    a, b = a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("most", [8, 1])
def test_vision_parts_compute_what_the_eager_model_does(prepared: Prepared, most: int) -> None:
    spec, weights = prepared.spec, prepared.weights
    size = spec.vision.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    model = EagerModel(spec, weights)
    values = {"patches": model.patch_embed(pixels).numpy()}
    for first, last in parts.cut(spec.vision.blocks, most):
        with float_run(parts.vision_part(spec, weights, first, last, batch=2)) as run:
            values |= run.run({name: values[name] for name in run.inputs})
    expected = model.vision_blocks(model.patch_embed(pixels))
    # The only difference is the 8 bits in which weights are stored.
    assert cosine(values["features"], expected.numpy()) > 0.9999
    with float_run(parts.connector(spec, weights, batch=2)) as run:
        tokens = run.run({"features": values["features"]})["tokens"]
    assert tokens.shape == tuple(model.connect(expected).shape)
    assert cosine(tokens, model.connect(expected).numpy()) > 0.9999


@pytest.mark.parametrize(("most", "attention"), [(8, "joined"), (1, "split")])
def test_decoder_parts_compute_what_the_eager_model_does(prepared: Prepared, most: int, attention: Attention) -> None:
    spec, weights, decoder = prepared.spec, prepared.weights, prepared.spec.decoder
    codes = {
        f"decoder.layers.{layer}.{name}": round_to_nearest(weights(f"decoder.layers.{layer}.{name}.weight"), 8, 16)
        for layer in range(decoder.layers)
        for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    replaced = {f"{name}.weight": torch.from_numpy(blocks.dequantize()) for name, blocks in codes.items()}
    model = EagerModel(spec, lambda name: replaced.get(name, weights(name)))
    ids = [5 + 7 * index % 90 for index in range(19)]
    embeddings = model.embed(ids)
    cache = EagerCache()
    expected = model.prefill(embeddings[:, :16], cache, CHUNK)
    step = model.decode(embeddings[:, 16:17], cache)
    values: dict[str, Array] = {}
    shape = (1, decoder.kv_heads, decoder.head_dim, CAPACITY)
    for layer in range(decoder.layers):
        values[f"past_key.{layer}"] = np.zeros(shape, np.float32)
        values[f"past_value.{layer}"] = np.zeros((1, decoder.kv_heads, CAPACITY, decoder.head_dim), np.float32)
    for past, length in ((0, CHUNK), (8, CHUNK), (16, 1)):
        values |= positions(prepared, past, length) | {"embeddings": embeddings[:, past : past + length].numpy()}
        for first, last in parts.cut(decoder.layers, most):
            graph = parts.decoder_part(
                spec, weights, codes.__getitem__, first, last, length=length, capacity=CAPACITY, attention=attention
            )
            with float_run(graph) as run:
                values |= run.run({name: values[name] for name in run.inputs})
        for layer in range(decoder.layers):
            values[f"past_key.{layer}"][..., past : past + length] = values[f"new_key.{layer}"]
            values[f"past_value.{layer}"][:, :, past : past + length] = values[f"new_value.{layer}"]
        with float_run(parts.output_projection(spec, weights)) as run:
            logits = run.run({"hidden": values["hidden"][:, -1:]})["logits"]
        if past == 8:
            assert cosine(logits, expected.numpy()) > 0.9999
    assert cosine(logits, step.numpy()) > 0.9999


def test_the_same_values_have_the_same_names_however_the_decoder_is_cut(prepared: Prepared) -> None:
    def names(bounds: list[tuple[int, int]], length: int) -> set[str]:
        made = set()
        for first, last in bounds:
            graph = parts.decoder_part(
                prepared.spec,
                prepared.weights,
                lambda name: None,
                first,
                last,
                length=length,
                capacity=CAPACITY,  # type: ignore[arg-type, return-value]
            )
            made |= set(graph.activations())
        return made

    layers = prepared.spec.decoder.layers
    one_by_one = names(parts.cut(layers, 1), CHUNK)
    assert names([(0, layers)], CHUNK) == one_by_one
    assert names([(0, layers)], 1) <= one_by_one


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
    assert told == ["ranges", *(f"{work}: INT4, LPBQ in blocks of 32" for work in works), "ranges"]
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


def test_of_a_graph_too_large_for_the_emulation_one_layer_is_emulated(
    tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TinyBlueLMV(positions=256).save(tmp_path / "checkpoint", [(1, 1), (2, 1)])
    base = load_recipe(recipe_file)
    recipe = replace(base, targets=("qnn:SM8750",), qnn=replace(base.qnn, layers_per_part=2), max_seq_len=256)
    monkeypatch.setattr("pocketvlm.toolchain.backends.qnn.graphs.SMALL_PRODUCTS", 100_000)
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle", recipe)
    parts = json.loads(bundle.path("report.json").read_text())["variants"]["qnn-SM8750"]["parts"]
    emulated = {stage: cosine for part in parts.values() for stage, cosine in part["cosines"].items()}
    assert emulated.keys() >= {"vision_encoder.1, first layer", "prefill.1, first layer"}
    assert not emulated.keys() & {"vision_encoder.0", "vision_encoder.1", "prefill.0", "prefill.1"}
    assert min(emulated.values()) >= 0.9999


def linear_and(op: str) -> StaticGraph:
    graph = StaticGraph("small")
    x = graph.input("x", (1, 8, 32))
    graph.output(graph.node(op, [x], (1, 8, 32)), "y")
    return graph


def written(folder: Path, graph: StaticGraph) -> Graph:
    path = folder / "small.onnx"
    with TensorFile(folder / "small.data") as tensors:
        write_qdq(graph, dict.fromkeys(graph.activations(), (-1.0, 1.0)), path, tensors)
    inputs, outputs = tensors_of(graph)
    return Graph("small", path, StageSpec(str(path), inputs, outputs), graph.products())


def compiler_for(soc: str, store: Path, memory_bytes: int = 4 << 30) -> Compiler:
    return Compiler(compile_options(SOCS[soc], None), store, memory_bytes)


def test_an_operator_that_does_not_land_is_named(tmp_path: Path) -> None:
    graph = written(tmp_path, linear_and("Mish"))
    compiler = compiler_for("SM8750", tmp_path / "store")
    with pytest.raises(GateError, match=r"small: Mish 'y' cannot run on the NPU"):
        compiler.compile("small", [graph.path], [tmp_path / "small.data"])
    assert not list((tmp_path / "store").glob("*[!l]/compiled.json"))


def test_what_was_compiled_is_taken_again_unless_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = written(tmp_path, linear_and("Sigmoid"))
    compiler = compiler_for("SM8750", tmp_path / "store")
    first = compiler.compile("small", [graph.path], [tmp_path / "small.data"])
    context = onnx.load(str(first.contexts[0]), load_external_data=False)
    assert [node.op_type for node in context.graph.node] == ["EPContext"]
    monkeypatch.setattr("pocketvlm.toolchain.backends.qnn.compiler.run_worker", lambda *args: pytest.fail("compiled twice"))
    assert compiler.compile("small", [graph.path], [tmp_path / "small.data"]) == first
    with pytest.raises(pytest.fail.Exception, match="compiled twice"):
        compiler_for("SM8550", tmp_path / "store").compile("small", [graph.path], [tmp_path / "small.data"])
    first.binary.write_bytes(first.binary.read_bytes()[:-1])
    with pytest.raises(pytest.fail.Exception, match="compiled twice"):
        compiler.compile("small", [graph.path], [tmp_path / "small.data"])


def test_equal_graphs_give_equal_binaries_wherever_they_lie(tmp_path: Path) -> None:
    found = []
    for folder in (tmp_path / "here", tmp_path / "elsewhere"):
        folder.mkdir()
        graph = written(folder, linear_and("Sigmoid"))
        made = compiler_for("SM8650", folder / "store").compile("small", [graph.path], [folder / "small.data"])
        found.append([path.read_bytes() for path in (made.binary, *made.contexts)])
    assert found[0] == found[1]


def test_the_compiler_is_stopped_at_its_bound_of_memory(tmp_path: Path) -> None:
    graph = written(tmp_path, linear_and("Sigmoid"))
    with pytest.raises(EnvironmentFault, match=r"takes more than the 0\.0 GB"):
        compiler_for("SM8750", tmp_path / "store", 1 << 20).compile("small", [graph.path], [tmp_path / "small.data"])


def test_the_emulation_gives_the_numbers_of_the_cpu(tmp_path: Path) -> None:
    graph = written(tmp_path, linear_and("Sigmoid"))
    x = np.random.default_rng(0).uniform(-1, 1, (1, 8, 32)).astype(np.float32)
    np.testing.assert_allclose(emulated(tmp_path, graph.path, {"x": x})["y"], 1 / (1 + np.exp(-x)), atol=1e-4)


def emulated(folder: Path, path: Path, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    np.savez(folder / "in.npz", allow_pickle=False, **inputs)
    job = {
        "work": "emulate", "graph": str(path), "inputs": str(folder / "in.npz"), "outputs": str(folder / "out.npz"),
        "options": compile_options(SOCS["SM8750"], None),
    }  # fmt: skip
    run_worker(folder, job, path.stem, 4 << 30)
    with np.load(folder / "out.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def on_the_npu(
    folder: Path, record: Callable[[float], StaticGraph], inputs: dict[str, Array], *, half: bool = False
) -> tuple[float, dict[str, Any]]:
    """Compile a graph and emulate it on float inputs, from which its ranges are: agreement with the CPU, and what it gives.

    Args:
        record: what is added to a masked score -> the graph.
    """
    graph = record(MASKED)
    with float_run(graph) as run:
        run.run(inputs)
    if not half:
        masked = mask_scores(run.ranges)
        graph = record(masked)
        if "mask" in inputs:
            inputs = inputs | {"mask": np.where(inputs["mask"] < 0, masked, 0).astype(np.float32)}
    path, data = folder / f"{graph.name}.onnx", folder / f"{graph.name}.data"
    with TensorFile(data) as tensors:
        if half:
            write_half(graph, path, tensors)
        else:
            write_qdq(graph, run.ranges, path, tensors)
    known = quantizations(graph, run.ranges)
    given = {name: known[name].encode(x) if graph.kinds.get(name) == "int8" else x for name, x in inputs.items()}
    assert compiler_for("SM8750", folder / "store").compile(graph.name, [path], [data]).binary.stat().st_size > 1000
    found = emulated(folder, path, given)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    expected = dict(zip(graph.outputs, session.run(graph.outputs, given), strict=True))
    return agreement(found, expected), found


@pytest.mark.parametrize("prepared", ["clip", "clip, several layers"], indirect=True)
@pytest.mark.parametrize("half", [False, True], ids=["int16", "float16"])
def test_the_tower_and_connector_of_llava_run_on_the_npu(prepared: Prepared, tmp_path: Path, half: bool) -> None:
    """Class token, quick_gelu, one feature layer without the first position, or several with it."""
    spec, weights, size = prepared.spec, prepared.weights, prepared.spec.vision.image_size
    model = EagerModel(spec, weights)
    patches = model.patch_embed(torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)))
    expected = model.vision_blocks(patches)

    def tower(masked: float) -> StaticGraph:
        return parts.vision_part(spec, weights, 0, spec.vision.blocks, batch=1, masked=masked)

    cosine_with_cpu, found = on_the_npu(tmp_path, tower, {"patches": patches.numpy()}, half=half)
    assert cosine_with_cpu >= AGREEMENT
    assert cosine(found["features"], expected.numpy()) > 0.999
    cosine_with_cpu, found = on_the_npu(tmp_path, lambda masked: parts.connector(spec, weights, batch=1), found, half=half)
    assert cosine_with_cpu >= AGREEMENT
    assert cosine(found["tokens"], model.connect(expected).numpy()) > 0.999


@pytest.mark.parametrize("length", [CHUNK, 1])
def test_a_decoder_with_weights_per_channel_runs_on_the_npu(tmp_path: Path, length: int) -> None:
    save_llava(tmp_path / "checkpoint", **CASES["clip"])  # type: ignore[arg-type]
    recipe = ExportRecipe(qnn=Qnn(decoder_weights="per_channel"))
    with Checkpoint.open(str(tmp_path / "checkpoint")) as checkpoint:
        prepared = prepare(checkpoint, recipe)
        prepared.weights.keep_in_memory(1 << 40)
    spec, weights, decoder = prepared.spec, prepared.weights, prepared.spec.decoder
    int4 = int4_reader(weights, recipe)

    def record(masked: float) -> StaticGraph:
        return parts.decoder_part(spec, weights, int4, 0, decoder.layers, length=length, capacity=CAPACITY, masked=masked)

    graph = record(MASKED)
    assert all(matrix.read().scales.shape[1] == 1 for matrix in graph.matrices.values())  # type: ignore[union-attr]
    random = np.random.default_rng(0)
    inputs = {name: random.normal(0, 0.5, shape).astype(np.float32) for name, shape in graph.inputs.items()}
    inputs |= positions(prepared, past=16, length=length)
    cosine_with_cpu, found = on_the_npu(tmp_path, record, inputs)
    assert cosine_with_cpu >= AGREEMENT
    assert found.keys() == {"hidden", *(f"new_{kind}.{layer}" for kind in ("key", "value") for layer in range(decoder.layers))}


def test_agreement_tells_cache_and_activations_apart() -> None:
    same = {"hidden": np.ones(4), "new_key.0": np.array([1, 2], np.int8)}
    assert agreement(same, same) == pytest.approx(1)
    other = {**same, "new_key.0": np.array([2, -1], np.int8)}
    assert agreement(other, same) == pytest.approx(0)


def test_every_layer_of_a_graph_may_add_its_rounding() -> None:
    assert least_agreement(1) == AGREEMENT == 0.9999
    assert least_agreement(4) == pytest.approx(0.9996)


@pytest.mark.parametrize(("layers", "passes"), [(2, False), (3, True)])
def test_a_graph_is_held_against_what_its_layers_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, passes: bool
) -> None:
    graph = replace(written(tmp_path, linear_and("Sigmoid")), layers=layers)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 8, 32)).astype(np.float32)
    on_cpu = 1 / (1 + np.exp(-x))
    noise = np.random.default_rng(1).normal(size=x.shape)
    noise -= on_cpu * (noise * on_cpu).sum() / np.square(on_cpu).sum()
    angle = np.arccos(0.99975)
    other = np.cos(angle) * on_cpu + np.sin(angle) * noise * np.linalg.norm(on_cpu) / np.linalg.norm(noise)
    monkeypatch.setattr(Emulation, "_emulate", lambda *arguments: {"y": other})
    emulation = Emulation(tmp_path / "work", compile_options(SOCS["SM8750"], None), 4 << 30, SilentProgress())
    if passes:
        assert emulation.check(graph, ({"x": x}, {"y": on_cpu}), None) == ("small", pytest.approx(0.99975, abs=1e-6))
    else:
        with pytest.raises(GateError, match=r"cosine 0\.99975, not at least 0\.99980.*layers_per_part: 1.*emulate: none"):
            emulation.check(graph, ({"x": x}, {"y": on_cpu}), None)


def test_a_batch_is_filled_with_real_tiles_for_the_comparison(bundles: Callable[[str], Path]) -> None:
    variant = Bundle.open(bundles("separate")).variant("qnn-cpu")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, *variant.stages["patch_embed"].inputs[0].shape[1:], generator=generator)
    embeddings = torch.randn(1, 40, variant.stages["lm_head"].inputs[0].shape[-1], generator=generator)
    sample = Conversation(Path("image.png"), None, None, pixels, embeddings)  # type: ignore[arg-type]
    patches = record(variant, bundles("separate"), sample, {"vision_encoder.0"})["vision_encoder.0"][0]["patches"]
    assert len(patches) == variant.vision_batch == 2
    np.testing.assert_array_equal(patches[0], patches[1])
