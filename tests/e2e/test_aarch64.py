"""The demo bundle on aarch64, under QEMU's user-mode emulation: what it answers on a computer, it answers on ARM.

Prepares the emulation once (some 400 MB in the user's cache, see `cache_folder`). Every question of the demo is asked on two
processors: one with dot products alone, and one with all that ONNX Runtime knows to use.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pocketvlm.toolchain.backends.onnx_graph import IR_VERSION
from pocketvlm.toolchain.devices import qemu
from pocketvlm.toolchain.devices.qemu import CPU_MODELS, NOTE, Emulation
from pocketvlm.toolchain.devices.report import BenchJob, Settings
from pocketvlm.toolchain.progress import SilentProgress

from . import answers_worker, kotlin_runtime

ROOT = Path(__file__).resolve().parents[2]
SCREENS = ROOT / "demo" / "screens"
QUESTIONS: dict[str, list[list[str]]] = json.loads((SCREENS / "questions.json").read_text(encoding="utf-8"))
OPERATORS = ROOT / "benchmarks" / "aarch64_worker.py"
# Of the questions about each screen, so many are asked of the Kotlin runtime, which an emulated JVM takes its time for.
BY_KOTLIN = 1

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("cpu", ["cortex-a76", "max"])
def test_every_answer_has_the_tokens_that_it_has_here(demo_bundle: Path, cpu: str) -> None:
    here = answers_worker.answers(demo_bundle, SCREENS, QUESTIONS)
    arguments = [demo_bundle, SCREENS, SCREENS / "questions.json"]
    done = Emulation(cpu).run_python([answers_worker.__file__, *map(str, arguments)], seconds=7200)
    assert done.returncode == 0
    there = json.loads(done.stdout)
    assert (there["machine"], there["saturating"]) == ("aarch64", False)
    assert here["machine"] != "aarch64"
    assert [answer["text"] for answer in there["answers"]] == [text for pairs in QUESTIONS.values() for _, text in pairs]
    assert there["answers"] == here["answers"]
    assert len(there["answers"]) == 25


def save(path: Path, nodes: list[onnx.NodeProto]) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=IR_VERSION), str(path))


@pytest.mark.parametrize("cpu", CPU_MODELS)
def test_small_and_half_numbers_are_those_of_the_standard(tmp_path: Path, cpu: str) -> None:
    """Numbers too small for a leading one stay what they are, and float16 rounds to the nearest, ties to even."""
    values = {
        "small": np.array([1e-45, -3e-42, 1.1e-38, 1.17e-38, 0.0, 1.0], np.float32),
        "half": np.array([1.00048828125, 1.00146484375, 65504, 65519, 65520, 1e-8, 6e-8, 1e-7, -0.1], np.float32),
    }
    save(tmp_path / "small.onnx", [helper.make_node("Add", ["x", "x"], ["y"])])
    halves = [helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), helper.make_node("Cast", ["h"], ["y"], to=1)]
    save(tmp_path / "half.onnx", halves)
    for name, array in values.items():
        np.savez(tmp_path / f"{name}.npz", case=array)
    job = {"operators": str(tmp_path), "options": {}, "out": str(tmp_path / "out.npz")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert Emulation(cpu).run_python([str(OPERATORS), str(tmp_path / "job.json")], seconds=600).returncode == 0
    found = np.load(tmp_path / "out.npz")
    with np.errstate(over="ignore"):
        expected = values["half"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found["half/case"], expected)
    np.testing.assert_array_equal(found["small/case"], values["small"] + values["small"])
    assert np.count_nonzero(found["small/case"]) == 5
    assert not found["saturating"]


def test_bench_is_labelled(demo_bundle: Path) -> None:
    job = BenchJob(demo_bundle, None, Settings(40, 4, 1, 1, None), None, timeout_s=1800)
    found = qemu.bench("cortex-a76", job, SilentProgress()).to_json()
    assert found["emulated"] is True
    assert found["note"].startswith(NOTE)
    assert found["device"]["kind"] == "qemu-aarch64"
    figures = found["results"]["text"]
    assert 36 <= figures["prompt_tokens"]["median"] <= 44
    assert 1 <= figures["new_tokens"]["median"] <= 4
    assert all(engine.endswith("emulated cortex-a76") for engine in found["stages"].values())


@pytest.mark.parametrize("cpu", ["cortex-a76", "max"])
def test_the_kotlin_runtime_has_the_same_tokens(demo_bundle: Path, tmp_path: Path, cpu: str) -> None:
    kotlin_runtime.build()
    asked = {name: pairs[:BY_KOTLIN] for name, pairs in QUESTIONS.items()}
    here = answers_worker.answers(demo_bundle, SCREENS, asked)["answers"]
    cases = [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": str(SCREENS / answer["screen"])},
                        {"type": "text", "text": answer["question"]},
                    ],
                }
            ],
            "max_new_tokens": 64,
        }
        for answer in here
    ]
    (tmp_path / "asked.json").write_text(json.dumps(cases))
    output = tmp_path / "answers.json"
    arguments = ["--bundle", demo_bundle, "--ask", tmp_path / "asked.json", "--output", output, "--threads", "1"]
    done = Emulation(cpu).run_java(kotlin_runtime.jars(), kotlin_runtime.MAIN, [*map(str, arguments)], seconds=7200)
    assert done.returncode == 0, done.stdout
    there = json.loads(output.read_text())
    assert [answer["token_ids"] for answer in there] == [answer["token_ids"] for answer in here]
    assert [answer["tile_plan"] for answer in there] == [answer["tile_plans"] for answer in here]
    assert len(there) == len(QUESTIONS)
