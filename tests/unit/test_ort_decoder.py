"""The decoder graph with an INT8 cache against attention written out in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from pocketvlm.runtime.manifest import TensorSpec
from pocketvlm.toolchain.backends.onnx_graph import GraphWriter, TensorFile
from pocketvlm.toolchain.backends.ort_decoder_ops import OrtDecoderOps
from pocketvlm.toolchain.backends.ort_ops import Scheme
from pocketvlm.toolchain.quantize.kv_cache import KvScales
from pocketvlm.toolchain.spec import DecoderSpec, RopeSpec

HEADS, KV_HEADS, SIZE, CAPACITY = 6, 2, 16, 40
SPEC = DecoderSpec("llama", HEADS * SIZE, 1, HEADS, KV_HEADS, SIZE, 8, 8, 1e-5, RopeSpec(10000.0), CAPACITY)
RNG = np.random.default_rng(0)
SCALES = KvScales(
    keys=(RNG.uniform(0.02, 0.05, (KV_HEADS, SIZE)).astype(np.float32),),
    values=(RNG.uniform(0.02, 0.05, (KV_HEADS, SIZE)).astype(np.float32),),
)
Array = NDArray[np.float32]


def attention_session(folder: Path, scales: KvScales | None) -> onnxruntime.InferenceSession:
    dtype = "float32" if scales is None else "int8"
    with TensorFile(folder / "weights.data") as tensors:
        graph = GraphWriter("attention", tensors)
        ops = OrtDecoderOps(graph, {}.__getitem__, Scheme("float32"), Scheme("float32"), SPEC, scales, CAPACITY)
        for name, heads in (("query", HEADS), ("key", KV_HEADS), ("value", KV_HEADS)):
            graph.input(TensorSpec(name, "float32", (1, "length", heads * SIZE)))
        graph.input(TensorSpec("past_length", "int64", (1,)))
        for kind in ("key", "value"):
            graph.input(TensorSpec(f"past_{kind}.0", dtype, (1, KV_HEADS, CAPACITY, SIZE)))
        graph.rename_output(ops.cached_attention("query", "key", "value", layer=0), "mixed")
        graph.output(TensorSpec("mixed", "float32", (1, "length", HEADS * SIZE)))
        for kind in ("key", "value"):
            graph.output(TensorSpec(f"present_{kind}.0", dtype, (1, KV_HEADS, CAPACITY, SIZE)))
    graph.save(folder / "attention.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(folder / "attention.onnx"), options, providers=["CPUExecutionProvider"])


def rotate(x: Array, start: int) -> Array:
    """x [L, heads, d] turned by its positions, the two halves of a head being the pairs."""
    half = SIZE // 2
    angles = (np.arange(start, start + len(x))[:, None] * 10000.0 ** (-np.arange(half) / half))[:, None, :]
    a, b = x[..., :half], x[..., half:]
    turned = [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)]
    return np.concatenate(turned, -1).astype(np.float32)


def reference(query: Array, key: Array, value: Array, scales: KvScales | None) -> Array:
    """Causal attention of a whole sequence [L, heads * d]; the cache rounded to INT8 when there are scales."""
    length = len(query)
    q = rotate(query.reshape(length, HEADS, SIZE), 0)
    k, v = rotate(key.reshape(length, KV_HEADS, SIZE), 0), value.reshape(length, KV_HEADS, SIZE)
    if scales is not None:
        k = np.clip(np.round(k / scales.keys[0]), -128, 127) * scales.keys[0]
        v = np.clip(np.round(v / scales.values[0]), -128, 127) * scales.values[0]
    out = np.zeros_like(q)
    for head in range(HEADS):
        group = head // (HEADS // KV_HEADS)
        for position in range(length):
            scores = k[: position + 1, group] @ q[position, head] / np.sqrt(SIZE)
            weights = np.exp(scores - scores.max())
            out[position, head] = (weights / weights.sum()) @ v[: position + 1, group]
    return out.reshape(length, -1)


@pytest.mark.parametrize("scales", [None, SCALES], ids=["float cache", "INT8 cache"])
@pytest.mark.parametrize("lengths", [(17, 1, 1, 5, 1), (1, 1, 1), (40,), (2, 30)], ids=str)
def test_chunks_and_tokens_give_what_numpy_gives(tmp_path: Path, scales: KvScales | None, lengths: tuple[int, ...]) -> None:
    session = attention_session(tmp_path, scales)
    total = sum(lengths)
    query, key, value = (RNG.standard_normal((total, n * SIZE)).astype(np.float32) for n in (HEADS, KV_HEADS, KV_HEADS))
    # Leftovers behind the valid length must never be read.
    dtype = np.float32 if scales is None else np.int8
    cache = {f"past_{kind}.0": np.full((1, KV_HEADS, CAPACITY, SIZE), 77, dtype) for kind in ("key", "value")}
    expected = reference(query, key, value, scales)
    done = 0
    for length in lengths:
        part = slice(done, done + length)
        inputs = {"query": query[None, part], "key": key[None, part], "value": value[None, part]}
        mixed, *present = session.run(None, inputs | {"past_length": np.array([done])} | cache)
        np.testing.assert_allclose(mixed[0], expected[part], atol=2e-5)
        cache = dict(zip(cache, present, strict=True))
        done += length


def test_both_branches_write_the_same_codes(tmp_path: Path) -> None:
    session = attention_session(tmp_path, SCALES)
    key = RNG.standard_normal((6, KV_HEADS * SIZE)).astype(np.float32) * 2
    query = np.zeros((6, HEADS * SIZE), np.float32)
    caches = []
    for lengths in ((6,), (1,) * 6):
        cache = {f"past_{kind}.0": np.zeros((1, KV_HEADS, CAPACITY, SIZE), np.int8) for kind in ("key", "value")}
        done = 0
        for length in lengths:
            part = slice(done, done + length)
            inputs = {"query": query[None, part], "key": key[None, part], "value": key[None, part]}
            _, *present = session.run(None, inputs | {"past_length": np.array([done])} | cache)
            cache = dict(zip(cache, present, strict=True))
            done += length
        caches.append(cache)
    for name in caches[0]:
        difference = np.abs(caches[0][name].astype(int) - caches[1][name].astype(int))
        # A value that lies between two codes may be rounded either way by the two kernels.
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
