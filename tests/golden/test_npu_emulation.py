"""The compiler for the NPU, and its emulation, on small graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from pocketvlm.errors import EnvironmentFault, GateError
from pocketvlm.toolchain.backends.qnn.compiler import compile_options
from pocketvlm.toolchain.backends.qnn.emulation import AGREEMENT, Emulation, agreement, least_agreement
from pocketvlm.toolchain.backends.qnn.socs import SOCS
from pocketvlm.toolchain.progress import SilentProgress

from .npu_graphs import compiler_for, emulated, linear_and, written


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
