"""The onnxruntime engine on graphs made here, and the fake engine's refusal of wrong input."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketvlm.errors import BundleError, Cancelled, EnvironmentFault
from pocketvlm.runtime.engines import ENGINES, int8_products, load_engine
from pocketvlm.runtime.engines.fake import FakeEngine, FakeEngineError
from pocketvlm.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine, session_options

FLOAT = TensorProto.FLOAT


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: tuple[Any, ...] = ()) -> Path:
    graph = helper.make_graph(nodes, "test", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def doubler(directory: Path) -> Path:
    value = helper.make_tensor_value_info
    return save(
        directory / "double.onnx",
        [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        [value("x", FLOAT, ["B", 3])],
        [value("y", FLOAT, ["B", 3]), value("z", FLOAT, ["B", 3])],
    )


def endless(directory: Path) -> Path:
    """A loop of 2**60 rounds."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Sin", ["state"], ["next"])],
        "body",
        [value("round", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("state", FLOAT, [3])],
        [value("again", TensorProto.BOOL, []), value("next", FLOAT, [3])],
    )
    rounds = numpy_helper.from_array(np.array(2**60, np.int64), "rounds")
    return save(
        directory / "endless.onnx",
        [helper.make_node("Loop", ["rounds", "", "x"], ["y"], body=body)],
        [value("x", FLOAT, [3])],
        [value("y", FLOAT, [3])],
        (rounds,),
    )


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_every_engine_of_the_table_loads(name: str) -> None:
    assert callable(load_engine(name).open)


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(BundleError, match="engine 'tensorflow' is not known"):
        load_engine("tensorflow")


def test_a_missing_package_is_an_environment_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "absent", "pocketvlm.runtime.engines.absent:Engine")
    with pytest.raises(EnvironmentFault, match="absent"):
        load_engine("absent")


def test_run_returns_all_outputs_by_name(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    results = OnnxRuntimeEngine().open(doubler(tmp_path), {}, 1).run({"x": x})
    assert results.keys() == {"y", "z"}
    np.testing.assert_array_equal(results["y"], 2 * x)
    np.testing.assert_array_equal(results["z"], -x)


def test_a_bound_run_reads_and_writes_the_callers_arrays_every_time(tmp_path: Path) -> None:
    x, y = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    run = OnnxRuntimeEngine().open(doubler(tmp_path), {}, 1).bind({"x": x}, {"y": y})
    for value in (1, 5):
        x[...] = value
        run.run()
        np.testing.assert_array_equal(y, np.full((2, 3), 2 * value))


def test_strided_arrays_cannot_be_bound(tmp_path: Path) -> None:
    session = OnnxRuntimeEngine().open(doubler(tmp_path), {}, 1)
    with pytest.raises(ValueError, match="contiguous"):
        session.bind({"x": np.zeros((3, 2), np.float32).T}, {})


def test_a_wrong_name_cannot_be_bound(tmp_path: Path) -> None:
    session = OnnxRuntimeEngine().open(doubler(tmp_path), {}, 1)
    with pytest.raises(BundleError, match=r"double\.onnx"):
        session.bind({"w": np.zeros((2, 3), np.float32)}, {})


def test_weights_in_external_data_are_found_beside_the_graph(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    weights = np.arange(3, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "test",
        [value("x", FLOAT, [3])],
        [value("y", FLOAT, [3])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "g.onnx", save_as_external_data=True, location="g.data", size_threshold=0)
    result = OnnxRuntimeEngine().open(tmp_path / "g.onnx", {}, 1).run({"x": np.ones(3, np.float32)})
    np.testing.assert_array_equal(result["y"], weights + 1)
    (tmp_path / "g.data").unlink()
    with pytest.raises(BundleError, match=r"g\.onnx"):
        OnnxRuntimeEngine().open(tmp_path / "g.onnx", {}, 1)


@pytest.mark.parametrize("bound", [False, True])
def test_cancel_stops_a_run_and_leaves_the_session_usable(tmp_path: Path, bound: bool) -> None:
    session = OnnxRuntimeEngine().open(endless(tmp_path), {}, 1)
    x = np.ones(3, np.float32)
    work = session.bind({"x": x}, {}).run if bound else lambda: session.run({"x": x})
    for _ in range(2):
        stop = threading.Event()

        def cancel(stop: threading.Event = stop) -> None:
            while not stop.wait(0.01):
                session.cancel()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        with pytest.raises(Cancelled):
            work()
        stop.set()
        canceller.join()


def test_cancel_without_a_run_has_no_effect_on_the_next(tmp_path: Path) -> None:
    session = OnnxRuntimeEngine().open(doubler(tmp_path), {}, 1)
    session.cancel()
    assert session.run({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0a"])
def test_a_file_that_is_no_graph_is_a_bundle_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=rf"^{tmp_path.name}/bad\.onnx: ONNX Runtime "):
        OnnxRuntimeEngine().open(path, {}, 1)


@pytest.mark.parametrize("inputs", [{"x": np.ones((1, 4), np.float32)}, {"x": np.ones((1, 3), np.float64)}])
def test_inputs_that_the_graph_refuses_are_a_bundle_error(tmp_path: Path, inputs: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"double\.onnx"):
        OnnxRuntimeEngine().open(doubler(tmp_path), {}, 1).run(inputs)


def test_options_are_applied_or_refused(tmp_path: Path) -> None:
    engine = OnnxRuntimeEngine()
    engine.open(doubler(tmp_path), {"graph_optimization": "basic", "mlas.disable_kleidiai": "1"}, None)
    for options in (
        {"graph_optimization": "basic", "int8_products": "exact"},
        {"arm_kernels": "fast"},
        {"arm_kernels": "fastest", "mlas.disable_kleidiai": "1"},
        {"mlas.disable_kleidiai": "0", "arm_kernels": "faithful"},
        {"graph_optimization": "most"},
        {"int8_products": "fast"},
        {"session.load_library": "/tmp/x.so"},
    ):
        with pytest.raises(BundleError, match="engine option"):
            engine.open(doubler(tmp_path), options, None)


@pytest.mark.parametrize("saturating", [True, False])
def test_weights_are_made_unsigned_only_where_products_saturate(monkeypatch: pytest.MonkeyPatch, saturating: bool) -> None:
    monkeypatch.setattr(int8_products, "saturating", lambda: saturating)
    settings = session_options({"int8_products": "exact"}, 1)
    if saturating:
        assert settings.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            settings.get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize(
    ("options", "without_kleidiai"),
    [
        ({}, "1"),
        ({"arm_kernels": "faithful"}, "1"),
        ({"arm_kernels": "fastest"}, "0"),
        ({"mlas.disable_kleidiai": "0"}, "0"),
        ({"mlas.disable_kleidiai": "1"}, "1"),
        ({"arm_kernels": "fastest", "mlas.disable_kleidiai": "0"}, "0"),
    ],
)
def test_arm_kernels_are_faithful_unless_the_bundle_says_otherwise(options: dict[str, str], without_kleidiai: str) -> None:
    assert session_options(options, 1).get_session_config_entry("mlas.disable_kleidiai") == without_kleidiai


def test_the_probe_tells_what_the_products_of_a_graph_do(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    weights = numpy_helper.from_array(np.full((64, 48), 127, np.int8), "weights")
    scales = numpy_helper.from_array(np.ones(48, np.float32), "scales")
    path = save(
        tmp_path / "product.onnx",
        [helper.make_node("DynamicQuantizeMatMul", ["x", "weights", "scales"], ["y"], domain="com.microsoft")],
        [value("x", FLOAT, ["n", 64])],
        [value("y", FLOAT, ["n", 48])],
        (weights, scales),
    )
    y = OnnxRuntimeEngine().open(path, {}, 1).run({"x": np.ones((9, 64), np.float32)})["y"]
    exact = bool(np.allclose(y, 64 * 127, rtol=1e-4))
    assert int8_products.saturating() == (not exact)


def test_the_probe_is_the_graph_that_its_comment_says() -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "w"], ["y"])],
        "probe",
        [value("a", TensorProto.UINT8, ["n", 4])],
        [value("y", TensorProto.INT32, ["n", 1])],
        [numpy_helper.from_array(np.full((4, 1), 127, np.int8), "w")],
    )
    assert onnx.load_from_string(int8_products.PROBE) == helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=5
    )


def test_a_closed_session_refuses_to_run(tmp_path: Path) -> None:
    session = OnnxRuntimeEngine().open(doubler(tmp_path), {}, 1)
    x = np.ones((1, 3), np.float32)
    bound = session.bind({"x": x}, {})
    session.close()
    session.close()
    for work in (bound.run, lambda: session.run({"x": x})):
        with pytest.raises(EnvironmentFault, match="closed"):
            work()


def decoder_inputs(past: int = 0, length: int = 2) -> dict[str, Any]:
    buffers = {f"past_{kind}.{layer}": np.zeros((1, 2, 64, 2), np.int8) for kind in ("key", "value") for layer in (0, 1)}
    return {"embeddings": np.ones((1, length, 4), np.float32), "past_length": np.array([past]), **buffers}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"surplus": np.zeros(1)}, "surplus"),
        ({"embeddings": np.ones((1, 2, 4), np.float64)}, "float64"),
        ({"embeddings": np.ones((1, 2, 5), np.float32)}, "shape"),
        ({"past_length": np.array([1])}, "nobody wrote"),
        ({"past_length": np.array([64])}, "outside the capacity"),
        ({"past_length": np.array([63]), "embeddings": np.ones((1, 2, 4), np.float32)}, "63 . 2 positions"),
        ({"past_key.1": np.ones((1, 2, 64, 2), np.int8), "past_length": np.array([0])}, None),
    ],
)
def test_the_fake_engine_forgives_nothing(tmp_path: Path, contract: Any, change: dict[str, Any], complaint: str | None) -> None:
    stage = contract.decoder_stages(contract.kv_spec())["decode"]
    (tmp_path / "v").mkdir()
    contract.write_script(tmp_path, stage, "decoder")
    session = FakeEngine().open(tmp_path / stage.file, {}, None)
    inputs = {**decoder_inputs(), **change}
    if complaint is None:
        session.run(inputs)
        return
    with pytest.raises(FakeEngineError, match=complaint):
        session.run(inputs)


def test_the_fake_engine_wants_the_cache_in_place(tmp_path: Path, contract: Any) -> None:
    stage = contract.decoder_stages(contract.kv_spec())["decode"]
    (tmp_path / "v").mkdir()
    contract.write_script(tmp_path, stage, "decoder")
    session = FakeEngine().open(tmp_path / stage.file, {}, None)
    with pytest.raises(FakeEngineError, match="not bound to the buffer"):
        session.bind(decoder_inputs(), {"present_key.0": np.zeros((1, 2, 64, 2), np.int8)})


def test_a_file_that_is_no_script_is_a_bundle_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"rule": "guess"}')
    with pytest.raises(BundleError, match=r"x\.json"):
        FakeEngine().open(tmp_path / "x.json", {}, None)
