"""Masks of quantized attention: what is masked gets no weight, however low the scores of all else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pocketvlm.runtime.engines import load_engine
from pocketvlm.toolchain.backends.onnx_graph import TensorFile
from pocketvlm.toolchain.backends.qnn.calibrate import mask_scores
from pocketvlm.toolchain.backends.qnn.float_graph import float_run
from pocketvlm.toolchain.backends.qnn.qdq_graph import quantizations, write_qdq
from pocketvlm.toolchain.backends.qnn.static_graph import StaticGraph
from pocketvlm.toolchain.backends.qnn.static_ops import MASKED, Attention, StaticDecoderOps
from pocketvlm.toolchain.spec import DecoderSpec, RopeSpec

LENGTH, CAPACITY, PAST, SIZE = 4, 8, 3, 8
DECODER = DecoderSpec(
    kind="llama", hidden_size=SIZE, layers=1, heads=1, kv_heads=1, head_dim=SIZE, intermediate_size=16, vocab_size=16,
    norm_eps=1e-5, rope=RopeSpec(theta=10_000.0), max_positions=64,
)  # fmt: skip
Array = NDArray[np.float32]


def attention(form: Attention, masked: float) -> StaticGraph:
    graph = StaticGraph("attention")
    ops = StaticDecoderOps(
        graph, lambda name: torch.zeros(1), None, DECODER, length=LENGTH, capacity=CAPACITY, attention=form, masked=masked
    )
    query, key, value = (graph.input(name, (1, LENGTH, SIZE)) for name in ("query", "key", "value"))
    ops.declare_positions()
    with graph.scope("layer"):
        mixed = ops.cached_attention(query, key, value, layer=0)
    graph.output(mixed, "mixed")
    return graph


def positions(masked: float) -> dict[str, Array]:
    turned = (1, LENGTH, 1, SIZE)
    mask = np.zeros((1, 1, 1, CAPACITY + LENGTH), np.float32)
    mask[..., PAST:CAPACITY] = masked
    return {"cos": np.ones(turned, np.float32), "sin": np.zeros(turned, np.float32), "mask": mask}


@pytest.mark.parametrize("form", ["joined", "split"])
def test_free_columns_get_no_weight_where_all_scores_are_far_below_zero(tmp_path: Path, form: Attention) -> None:
    random = np.random.default_rng(0)
    direction = random.normal(size=SIZE).astype(np.float32)
    direction /= np.linalg.norm(direction)
    # Scores around -200: a free column's, 0, would win over all of them with a mask of -100.
    query = 24 * direction + random.normal(0, 1.0, (1, LENGTH, SIZE)).astype(np.float32)
    # Keys that 8 bits hold exactly, so that all of the difference is the mask's: the largest is 127 steps.
    step = np.float32(0.15)
    key = np.rint((-24 * direction + random.normal(0, 0.3, (1, LENGTH, SIZE))) / step).astype(np.float32) * step
    past_key = (
        np.rint((-24 * direction[:, None] + random.normal(0, 0.3, (1, 1, SIZE, CAPACITY))) / step).astype(np.float32) * step
    )
    largest = np.abs(direction).argmax()
    past_key[0, 0, largest, 0] = -np.sign(direction[largest]) * 127 * step
    past_key[..., PAST:] = 0
    value, past_value = (random.normal(size=shape).astype(np.float32) for shape in ((1, LENGTH, SIZE), (1, 1, CAPACITY, SIZE)))
    past_value[:, :, PAST:] = 0
    inputs = {"query": query, "key": key, "value": value, "past_key.0": past_key, "past_value.0": past_value}
    expected = reference(query, key, value, past_key, past_value)
    with float_run(attention(form, MASKED)) as run:
        np.testing.assert_allclose(run.run(inputs | positions(MASKED))["mixed"], expected, atol=1e-4)
        ranges = run.ranges
    masked = mask_scores(ranges)
    assert masked < -200
    graph = attention(form, masked)
    with TensorFile(tmp_path / "data") as tensors:
        write_qdq(graph, ranges, tmp_path / "model.onnx", tensors)
    known = quantizations(graph, ranges)
    for name in ("past_key.0", "past_value.0"):
        inputs[name] = known[name].encode(inputs[name])
    session = load_engine("onnxruntime").open(tmp_path / "model.onnx", {"graph_optimization": "disabled"}, 1)
    got = session.run(inputs | positions(masked))["mixed"]
    session.close()
    np.testing.assert_allclose(got, expected, atol=0.02)
    behind = known["layer/masked_scores"]
    assert -behind.zero * float(behind.scale) == pytest.approx(ranges["layer/scores"][0] - 20, abs=0.1)


def reference(query: Array, key: Array, value: Array, past_key: Array, past_value: Array) -> Array:
    """The same with torch, over the filled columns alone."""
    keys = torch.from_numpy(np.concatenate([past_key[0, 0].T[:PAST], key[0]]))
    values = torch.from_numpy(np.concatenate([past_value[0, 0, :PAST], value[0]]))
    causal = torch.ones(LENGTH, PAST + LENGTH, dtype=torch.bool).tril(PAST)
    mixed = torch.nn.functional.scaled_dot_product_attention(torch.from_numpy(query[0]), keys, values, causal)
    result: Array = mixed[None].numpy()
    return result
