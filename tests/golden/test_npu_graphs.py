"""The NPU's graphs: their float form against the eager model, and some of them on the emulated NPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pocketvlm.toolchain.backends.qnn import parts
from pocketvlm.toolchain.backends.qnn.emulation import AGREEMENT
from pocketvlm.toolchain.backends.qnn.float_graph import float_run
from pocketvlm.toolchain.backends.qnn.graphs import int4_reader
from pocketvlm.toolchain.backends.qnn.static_graph import StaticGraph
from pocketvlm.toolchain.backends.qnn.static_ops import MASKED, Attention
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.model import EagerModel
from pocketvlm.toolchain.prepare import Prepared, prepare
from pocketvlm.toolchain.quantize.block import round_to_nearest
from pocketvlm.toolchain.recipe import ExportRecipe, Qnn
from pocketvlm.toolchain.torch_ops import EagerCache, rotary_table

from .conftest import save_llava
from .npu_graphs import Array, cosine, on_the_npu

CAPACITY, CHUNK = 64, 8
CASES = {
    "clip": {"tower": "clip", "feature_layer": -2, "strategy": "default"},
    "clip, several layers": {"tower": "clip", "feature_layer": [-1, -3], "strategy": "full", "bias": False},
    "siglip, tied": {"tower": "siglip", "feature_layer": -1, "strategy": "full", "tied": True},
}


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
    recipe = ExportRecipe(targets=("qnn:SM8750",), qnn=Qnn(decoder_weights="per_channel"))
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
