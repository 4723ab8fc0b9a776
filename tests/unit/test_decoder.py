"""The decoder on the fake engine and, for both cache protocols, on small real graphs run by ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketvlm.errors import BundleError, Cancelled
from pocketvlm.runtime.decoder import Decoder
from pocketvlm.runtime.engines import load_engine
from pocketvlm.runtime.engines.fake import FakeEngineError, checksum
from pocketvlm.runtime.manifest import VariantSpec

IDS = [7, 50, 9, 9, 12, 33, 8, 60, 41, 5, 22, 90, 13, 14, 15, 16, 17, 18, 19]
SIZE = 4


def open_decoder(directory: Path, stages: Any, cache: Any, engine: str, **options: Any) -> Decoder:
    variant = VariantSpec("v", "t", "fp32", engine, {}, 1, stages, cache, {})
    program = load_engine(engine)
    files = {stage.file for stage in stages.values()}
    sessions = {file: program.open(directory / file, {}, 1) for file in files}
    return Decoder(variant, {name: sessions[stage.file] for name, stage in stages.items()}, **options)


@pytest.fixture(
    params=["in_place", "columns", "columns, fixed chunk", "in_place, no logits", "columns, fixed chunk, no logits"]
)
def fake(request: Any, tmp_path: Path, contract: Any) -> Decoder:
    cache = contract.kv_spec(protocol=request.param.split(",")[0])
    stages = contract.decoder_stages(cache, 8 if "fixed" in request.param else "L")
    if "no logits" in request.param:
        outputs = tuple(tensor for tensor in stages["prefill"].outputs if tensor.name != "logits")
        stages["prefill"] = replace(stages["prefill"], outputs=outputs, file="v/fills-the-cache.json")
    (tmp_path / "v").mkdir()
    contract.write_script(tmp_path, stages["embed_tokens"], "embed")
    for name in ("prefill", "decode"):
        contract.write_script(tmp_path, stages[name], "decoder", stall_on=[77])
    return open_decoder(tmp_path, stages, cache, "fake")


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 19])
def test_prefill_of_any_length_ends_with_the_whole_context(fake: Decoder, length: int) -> None:
    logits = fake.prefill(fake.embed(IDS[:length]))
    assert logits.argmax() == checksum(IDS[:length], 96)
    assert fake.length == length


def test_steps_continue_a_prefill(fake: Decoder) -> None:
    fake.prefill(fake.embed(IDS[:10]))
    for position in range(10, 19):
        assert fake.step(IDS[position]).argmax() == checksum(IDS[: position + 1], 96)


def test_a_prefill_from_the_middle_keeps_what_stands_before(fake: Decoder) -> None:
    fake.prefill(fake.embed(IDS))
    other = [*IDS[:11], 70, 71, 72]
    assert fake.prefill(fake.embed(other), start=11).argmax() == checksum(other, 96)
    assert fake.length == 14


def test_a_full_cache_is_refused_and_can_be_used_again(fake: Decoder) -> None:
    ids = [20 + index % 50 for index in range(64)]
    assert fake.prefill(fake.embed(ids[:63])).argmax() == checksum(ids[:63], 96)
    assert fake.step(ids[63]).argmax() == checksum(ids, 96)
    with pytest.raises(ValueError, match="full"):
        fake.step(1)
    with pytest.raises(ValueError, match="cannot prefill"):
        fake.prefill(np.zeros((65, SIZE), np.float32))
    fake.reset()
    assert fake.prefill(fake.embed([5])).argmax() == checksum([5], 96)


def test_cancelling_between_chunks_keeps_the_chunks_before(fake: Decoder) -> None:
    answers = iter([False, True])
    with pytest.raises(Cancelled):
        fake.prefill(fake.embed(IDS), cancelled=lambda: next(answers))
    assert fake.length == 8
    assert fake.prefill(fake.embed(IDS), start=8).argmax() == checksum(IDS, 96)


def test_a_failed_run_does_not_count(fake: Decoder) -> None:
    fake.prefill(fake.embed(IDS[:10]))
    fake.cache.advance(2)
    with pytest.raises(FakeEngineError, match="nobody wrote"):
        fake.step(1)
    assert fake.length == 12
    fake.reset(10)
    assert fake.step(IDS[10]).argmax() == checksum(IDS[:11], 96)


def test_engine_time_is_counted(fake: Decoder) -> None:
    fake.prefill(fake.embed(IDS))
    before = fake.engine_seconds
    assert before > 0
    fake.step(1)
    assert fake.engine_seconds > before


def test_rows_are_asked_for_a_chunk_at_a_time(fake: Decoder) -> None:
    class Rows:
        asked: list[tuple[int, int]] = []  # noqa: RUF012

        def __len__(self) -> int:
            return 19

        def fill(self, start: int, out: np.ndarray) -> None:
            self.asked.append((start, len(out)))
            out[...] = np.array(IDS[start : start + len(out)])[:, None]

    assert fake.prefill(Rows()).argmax() == checksum(IDS, 96)
    assert max(length for _, length in Rows.asked) == 8
    assert sum(length for _, length in Rows.asked) == 19


@pytest.mark.parametrize(
    ("stage", "side", "name"),
    [("prefill", "inputs", "past_key.1"), ("decode", "outputs", "logits"), ("embed_tokens", "inputs", "token_ids")],
)
def test_stages_of_other_inputs_or_outputs_are_refused(contract: Any, stage: str, side: str, name: str) -> None:
    cache = contract.kv_spec()
    stages = contract.decoder_stages(cache)
    tensors = tuple(item for item in getattr(stages[stage], side) if item.name != name)
    stages[stage] = replace(stages[stage], **{side: tensors})
    variant = VariantSpec("v", "t", "fp32", "fake", {}, 1, stages, cache, {})
    with pytest.raises(BundleError, match=name):
        Decoder(variant, dict.fromkeys(stages))  # type: ignore[arg-type]


def real_graph(path: Path, cache: Any, length: int | str, in_place: bool) -> None:
    """Logits: the sum of all embeddings in the context, plus 100 times the last one, plus past_length.

    Keys are the embeddings, values their negatives; the context is read back from the keys.
    """
    value = helper.make_tensor_value_info
    buffer = [1, 1, cache.capacity, SIZE]
    node = helper.make_node
    constants = {"zero": [0], "one": [1], "two": [2], "last": [-1], "end": [2**62]}
    nodes = [
        node("Unsqueeze", ["embeddings", "one"], ["new_key"]),
        node("Neg", ["new_key"], ["new_value"]),
        node("Shape", ["embeddings"], ["shape"]),
        node("Slice", ["shape", "one", "two", "zero"], ["length"]),
        node("Add", ["past_length", "length"], ["total"]),
        node("Slice", ["embeddings", "last", "end", "one"], ["tail"]),
        node("ReduceSum", ["tail", "one"], ["tail_sum"], keepdims=0),
        node("Mul", ["tail_sum", "hundred"], ["weighted"]),
        node("Cast", ["past_length"], ["past_float"], to=TensorProto.FLOAT),
    ]
    if in_place:
        nodes += [
            node("TensorScatter", ["past_key.0", "new_key", "past_length"], ["present_key.0"], axis=2),
            node("TensorScatter", ["past_value.0", "new_value", "past_length"], ["present_value.0"], axis=2),
            node("Slice", ["present_key.0", "zero", "total", "two"], ["context"]),
        ]
    else:
        nodes += [
            node("Identity", ["new_key"], ["new_key.0"]),
            node("Identity", ["new_value"], ["new_value.0"]),
            node("Slice", ["past_key.0", "zero", "past_length", "two"], ["past"]),
            node("Concat", ["past", "new_key"], ["context"], axis=2),
        ]
    nodes += [
        node("ReduceSum", ["context", "axes"], ["context_sum"], keepdims=0),
        node("Add", ["context_sum", "weighted"], ["both"]),
        node("Add", ["both", "past_float"], ["logits"]),
    ]
    kind, columns = ("present", buffer) if in_place else ("new", [1, 1, length, SIZE])
    initializers = [numpy_helper.from_array(np.array(item, np.int64), name) for name, item in constants.items()]
    initializers.append(numpy_helper.from_array(np.array([1, 2], np.int64), "axes"))
    initializers.append(numpy_helper.from_array(np.float32(100), "hundred"))
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            value("embeddings", TensorProto.FLOAT, [1, length, SIZE]),
            value("past_length", TensorProto.INT64, [1]),
            value("past_key.0", TensorProto.FLOAT, buffer),
            value("past_value.0", TensorProto.FLOAT, buffer),
        ],
        [
            value("logits", TensorProto.FLOAT, [1, SIZE]),
            value(f"{kind}_key.0", TensorProto.FLOAT, columns),
            value(f"{kind}_value.0", TensorProto.FLOAT, columns),
        ],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), path)


def real_table(path: Path, table: np.ndarray) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "token_ids"], ["embeddings"])],
        "embed",
        [helper.make_tensor_value_info("token_ids", TensorProto.INT64, [1, "L"])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [1, "L", SIZE])],
        [numpy_helper.from_array(table, "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), path)


@pytest.mark.parametrize(("protocol", "chunk"), [("in_place", "L"), ("columns", "L"), ("columns", 8)])
def test_real_graphs_see_exactly_the_context(tmp_path: Path, contract: Any, protocol: str, chunk: int | str) -> None:
    cache = contract.kv_spec(dtype="float32", protocol=protocol, layers=1, kv_heads=1, head_dim=SIZE)
    stages = contract.decoder_stages(cache, chunk, vocabulary=SIZE)
    table = np.random.default_rng(0).normal(size=(96, SIZE)).astype(np.float32)
    (tmp_path / "v").mkdir()
    real_table(tmp_path / "v/embed.onnx", table)
    real_graph(tmp_path / stages["decode"].file, cache, 1 if chunk == 8 else "L", protocol == "in_place")
    if chunk == 8:
        real_graph(tmp_path / stages["prefill"].file, cache, chunk, False)
    decoder = open_decoder(tmp_path, stages, cache, "onnxruntime")

    def expected(ids: list[int], past: int) -> np.ndarray:
        return table[ids].sum(axis=0) + 100 * table[ids[-1]] + past

    # The last chunk starts at 16; a fixed one hands its last token to the decode stage, at 18.
    np.testing.assert_allclose(decoder.prefill(table[IDS]), expected(IDS, 18 if chunk == 8 else 16), rtol=1e-4)
    np.testing.assert_allclose(decoder.step(42), expected([*IDS, 42], 19), rtol=1e-4)
    np.testing.assert_allclose(decoder.step(43), expected([*IDS, 42, 43], 20), rtol=1e-4)
    stored = decoder.cache.past()
    np.testing.assert_allclose(stored["past_key.0"][0, 0, :21], table[[*IDS, 42, 43]])
    np.testing.assert_allclose(stored["past_value.0"][0, 0, :21], -table[[*IDS, 42, 43]])
    other = [*IDS[:5], 80, 81]
    past = 6 if chunk == 8 else 5
    np.testing.assert_allclose(decoder.prefill(decoder.embed(other), start=5), expected(other, past), rtol=1e-4)
