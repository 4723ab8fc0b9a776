"""The compiler for the NPU, and its emulation, on small graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from pocketvlm.errors import EnvironmentFault, GateError
from pocketvlm.runtime.manifest import StageSpec
from pocketvlm.toolchain.backends.qnn.compiler import compile_options
from pocketvlm.toolchain.backends.qnn.emulation import AGREEMENT, Emulation, agreement, in_float32, least_agreement
from pocketvlm.toolchain.backends.qnn.graphs import Graph
from pocketvlm.toolchain.backends.qnn.qdq_graph import tensors_of
from pocketvlm.toolchain.backends.qnn.socs import SOCS
from pocketvlm.toolchain.backends.qnn.static_graph import StaticGraph
from pocketvlm.toolchain.progress import SilentProgress

from .npu_graphs import Array, compiler_for, emulated, linear_and, written


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


def test_agreement_tells_cache_and_activations_apart() -> None:
    same = {"hidden": np.ones((1, 2, 4)), "new_key.0": np.array([1, 2], np.int8).reshape(1, 1, 2, 1)}
    assert agreement(same, same) == {"activations": 1, "cache": 1}
    other = {**same, "new_key.0": np.array([2, -1], np.int8).reshape(1, 1, 2, 1)}
    assert agreement(other, same) == {"activations": 1, "cache": pytest.approx(0)}


def test_agreement_is_taken_position_by_position() -> None:
    """One huge position must not hide what is wrong in the others; nor is a wrong length of the right direction right."""
    random = np.random.default_rng(0)
    hidden = random.normal(size=(1, 4, 32))
    hidden[0, 0] *= 10_000
    wrong = hidden.copy()
    wrong[0, 1:] = random.normal(size=(3, 32))
    assert agreement({"hidden": wrong}, {"hidden": hidden})["activations"] < 0.6
    assert agreement({"hidden": 1.1 * hidden}, {"hidden": hidden})["activations"] == pytest.approx(1 - 0.5 * 0.1**2)
    nothing = np.zeros_like(hidden)
    assert agreement({"hidden": nothing}, {"hidden": nothing})["activations"] == 1
    assert agreement({"hidden": nothing}, {"hidden": hidden})["activations"] == 0
    keys, values = random.normal(size=(1, 2, 8, 3)), random.normal(size=(1, 2, 3, 8))
    cache = {"new_key.0": keys, "new_value.0": values, "new_key.1": keys, "new_value.1": values}
    swapped = {**cache, "new_key.1": keys[..., ::-1]}

    def at(part: dict[str, Any], position: int) -> NDArray[Any]:
        columns = [x[0, :, :, position] if "key" in name else x[0, :, position] for name, x in part.items()]
        return np.concatenate([column.reshape(-1) for column in columns])

    pairs = [(at(swapped, position), at(cache, position)) for position in range(3)]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
    errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]
    expected = np.mean([min(cosine, 1 - error**2 / 2) for cosine, error in zip(cosines, errors, strict=True)])
    assert agreement(swapped, cache)["cache"] == pytest.approx(expected)


def test_every_layer_of_a_graph_may_add_its_rounding() -> None:
    assert least_agreement(1) == AGREEMENT == 0.9999
    assert least_agreement(4) == pytest.approx(0.9996)


def turned(values: Array, cosine: float, seed: int) -> Array:
    """An array of the same length in the same direction but for an angle."""
    noise = np.random.default_rng(seed).normal(size=values.shape).astype(np.float32)
    noise -= values * (noise * values).sum() / np.square(values).sum()
    angle = np.float32(np.arccos(cosine))
    return np.cos(angle) * values + np.sin(angle) * noise * np.linalg.norm(values) / np.linalg.norm(noise)


@pytest.mark.parametrize(
    ("layers", "of_npu", "of_cpu", "told"),
    [
        (3, 0.99975, 1.0, None),
        (2, 0.99975, 1.0, r"cosine 0\.9997\d\d .* and 1\.000000 between these and float32; wanted is at least 0\.99980\)"),
        # As coarse as the graph itself is on the CPU.
        (2, 0.9990, 0.9992, None),
        (2, 0.9990, 0.9996, r"0\.9989\d\d and 0\.9995\d\d between these and float32"),
        (2, 0.985, 0.990, r"0\.984\d\d\d and 0\.989\d\d\d between these and float32"),
    ],
)
def test_a_graph_is_held_against_the_cpu_and_then_against_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, of_npu: float, of_cpu: float, told: str | None
) -> None:
    graph = replace(written(tmp_path, linear_and("Sigmoid")), layers=layers)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 8, 32)).astype(np.float32)
    exact = 1 / (1 + np.exp(-x))
    on_cpu = turned(exact, of_cpu, 1)
    emulation = emulation_of(tmp_path, monkeypatch, {"y": on_cpu}, {"y": turned(exact, of_npu, 2)})
    if told is None:
        found = emulation.check(graph, ({"x": x}, {"y": on_cpu}), None)
        assert (found.what, found.npu_float32 is not None) == ("small", of_cpu < 1)
    else:
        with pytest.raises(GateError, match=rf"{told}.*layers_per_part: 1.*emulate: none"):
            emulation.check(graph, ({"x": x}, {"y": on_cpu}), None)
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir())


def emulation_of(folder: Path, monkeypatch: pytest.MonkeyPatch, on_cpu: dict[str, Any], on_npu: dict[str, Any]) -> Emulation:
    """One in which both sides give these values."""
    monkeypatch.setattr("pocketvlm.toolchain.backends.qnn.emulation._run", lambda path, inputs: on_cpu)
    monkeypatch.setattr(Emulation, "_emulate", lambda *arguments: on_npu)
    return Emulation(folder / "work", compile_options(SOCS["SM8750"], None), 4 << 30, SilentProgress())


def test_coarse_activations_are_no_excuse_for_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = {"y": np.ones((1, 8, 32), np.float32), "new_value.0": np.full((1, 2, 8, 16), 100, np.float32)}
    on_cpu = {"y": turned(exact["y"], 0.997, 1), "new_value.0": exact["new_value.0"]}
    on_npu = {"y": turned(exact["y"], 0.997, 2), "new_value.0": turned(exact["new_value.0"], 0.997, 3)}
    monkeypatch.setattr("pocketvlm.toolchain.backends.qnn.emulation.in_float32", lambda *arguments: exact)
    graph = written(tmp_path, linear_and("Sigmoid"))
    with pytest.raises(GateError, match="other numbers than the same graph on the CPU"):
        emulation_of(tmp_path, monkeypatch, on_cpu, on_npu).check(graph, ({}, on_cpu), None)
    fine = {"y": on_npu["y"], "new_value.0": exact["new_value.0"]}
    assert emulation_of(tmp_path, monkeypatch, on_cpu, fine).check(graph, ({}, on_cpu), None).cosine < 0.9999


def test_the_two_forms_for_the_cpu_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y = np.ones((1, 8, 32), np.float32)
    emulation = emulation_of(tmp_path, monkeypatch, {"y": y}, {"y": y})
    with pytest.raises(GateError, match=r"small: its two forms for the CPU give other numbers \(cosine 0\.998"):
        emulation.check(written(tmp_path, linear_and("Sigmoid")), ({}, {"y": turned(y, 0.998, 1)}), None)


def test_of_a_sampled_graph_the_first_layer_is_held_to_the_bound_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = written(tmp_path, linear_and("Sigmoid"))
    x = np.random.default_rng(0).uniform(-1, 1, (1, 8, 32)).astype(np.float32)
    y = 1 / (1 + np.exp(-x))
    emulation = emulation_of(tmp_path, monkeypatch, {"y": y}, {"y": turned(y, 0.9998, 1)})
    with pytest.raises(GateError, match=r"small, first layer: .*wanted is at least 0\.99990"):
        emulation.check(replace(layer, layers=8, first_layer=layer), ({"x": x}, {"y": y}), None)


def test_what_a_graph_gives_in_float32_is_in_the_steps_of_its_cache(tmp_path: Path) -> None:
    form = StaticGraph("small")
    x = form.input("x", (1, 8), "int8")
    form.output(form.node("Requantize", [x], (1, 8), kind="int8"), "new_y")
    graph = Graph("small", tmp_path / "none.onnx", StageSpec("none.onnx", *tensors_of(form)), form, {"x": 1.0, "new_y": 2.0})
    codes = np.array([[-127, -3, 0, 1, 2, 3, 100, 127]], np.int8)
    np.testing.assert_array_equal(in_float32(graph, {"x": codes}, tmp_path / "work")["new_y"], codes / 2)
