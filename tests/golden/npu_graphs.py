"""Small graphs for the NPU: written, compiled and emulated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pocketvlm.runtime.manifest import StageSpec
from pocketvlm.toolchain.backends.onnx_graph import TensorFile
from pocketvlm.toolchain.backends.qnn.calibrate import mask_scores
from pocketvlm.toolchain.backends.qnn.compiler import Compiler, compile_options, run_worker
from pocketvlm.toolchain.backends.qnn.emulation import agreement
from pocketvlm.toolchain.backends.qnn.float_graph import float_run
from pocketvlm.toolchain.backends.qnn.graphs import Graph
from pocketvlm.toolchain.backends.qnn.half_graph import write_half
from pocketvlm.toolchain.backends.qnn.qdq_graph import quantizations, tensors_of, write_qdq
from pocketvlm.toolchain.backends.qnn.socs import SOCS
from pocketvlm.toolchain.backends.qnn.static_graph import StaticGraph
from pocketvlm.toolchain.backends.qnn.static_ops import MASKED

Array = NDArray[np.float32]


def cosine(a: Array, b: Array) -> float:
    a, b = a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


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
    return Graph("small", path, StageSpec(str(path), inputs, outputs), graph)


def compiler_for(soc: str, store: Path, memory_bytes: int = 4 << 30) -> Compiler:
    return Compiler(compile_options(SOCS[soc], None), store, memory_bytes)


def emulated(folder: Path, path: Path, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    np.savez(folder / "in.npz", **inputs)
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
    return min(agreement(found, expected).values()), found
