"""The demo bundle on aarch64, under QEMU's user-mode emulation: what it answers on a computer, it answers on ARM.

Prepares the emulation once (some 400 MB in the user's cache, see `cache_folder`). Every question of the demo is asked on two
processors: one with dot products alone, and one with all that ONNX Runtime knows to use.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from pocketvlm.toolchain.backends.onnx_graph import IR_VERSION
from pocketvlm.toolchain.devices import qemu
from pocketvlm.toolchain.devices.qemu import CPU_MODELS, NOTE, Emulation

from . import answers_worker

ROOT = Path(__file__).resolve().parents[2]
SCREENS = ROOT / "demo" / "screens"
QUESTIONS: dict[str, list[list[str]]] = json.loads((SCREENS / "questions.json").read_text(encoding="utf-8"))
OPERATORS = ROOT / "benchmarks" / "aarch64_worker.py"
PROBE = """
import ai.onnxruntime.*;
import java.util.Arrays;
import java.util.Map;

public class Probe {
    public static void main(String[] arguments) throws OrtException {
        OrtEnvironment environment = OrtEnvironment.getEnvironment();
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            options.addConfigEntry("mlas.disable_kleidiai", "1");
            try (OrtSession session = environment.createSession(arguments[0], options);
                    OnnxTensor x = OnnxTensor.createTensor(environment, new float[] {1f, 2f, 3f});
                    OrtSession.Result result = session.run(Map.of("x", x))) {
                float[] y = (float[]) result.get(0).getValue();
                System.out.println(System.getProperty("os.arch") + " " + environment.getVersion() + " " + Arrays.toString(y));
            }
        }
    }
}
"""

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
    found = qemu.bench(demo_bundle, prompt_tokens=40, new_tokens=4, threads=1, cpu="cortex-a76", seconds=1800)
    assert found["emulated"] is True
    assert found["note"].startswith(NOTE)
    assert found["device"]["kind"] == "qemu-aarch64"
    figures = found["results"]["text"]
    assert 36 <= figures["prompt_tokens"]["median"] <= 44
    assert 1 <= figures["new_tokens"]["median"] <= 4
    assert all(engine.endswith("emulated cortex-a76") for engine in found["stages"].values())


def test_java_opens_a_session(tmp_path: Path) -> None:
    """As the Kotlin runtime does; ONNX Runtime's jar brings its library for aarch64."""
    artefact = f"com.microsoft.onnxruntime:onnxruntime:{onnxruntime.__version__}"
    copy = ["mvn", "--batch-mode", "--quiet", "dependency:copy", f"-Dartifact={artefact}", f"-DoutputDirectory={tmp_path}"]
    subprocess.run(copy, cwd=tmp_path, check=True, timeout=600)
    jar = tmp_path / f"onnxruntime-{onnxruntime.__version__}.jar"
    (tmp_path / "Probe.java").write_text(PROBE)
    compiler = ["javac", "--release", "17", "-cp", str(jar), "Probe.java"]
    subprocess.run(compiler, cwd=tmp_path, check=True, timeout=300)
    save(tmp_path / "double.onnx", [helper.make_node("Add", ["x", "x"], ["y"])])
    done = Emulation("cortex-a76").run_java([jar, tmp_path], "Probe", [str(tmp_path / "double.onnx")], seconds=600)
    assert done.returncode == 0
    assert done.stdout == f"aarch64 {onnxruntime.__version__} [2.0, 4.0, 6.0]\n"
