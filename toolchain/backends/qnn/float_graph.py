"""Writes a `StaticGraph` with float32 values, for calibration: every value's range is an output."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pocketvlm.runtime.manifest import TensorSpec
from pocketvlm.toolchain.backends.onnx_graph import GraphWriter, TensorFile
from pocketvlm.toolchain.backends.qnn.static_graph import Matrix, Range, StaticGraph
from pocketvlm.toolchain.quantize.block import BlockWeights

OPSET = 23
_LOW, _HIGH = "lowest", "highest"


class FloatRun:
    """The opened float graph.

    Attributes:
        inputs: names of the graph's inputs.
        ranges: lowest and highest value of everything, over all runs so far, 0 included.
    """

    def __init__(self, session: Any, inputs: list[str], watched: list[str], outputs: list[str]) -> None:
        self.inputs = inputs
        self._session = session
        self._watched = watched
        self._outputs = outputs
        self.ranges: dict[str, Range] = {}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Run on float32 inputs; returns the graph's outputs by name."""
        values = self._session.run([*self._outputs, _LOW, _HIGH], dict(inputs))
        for name, low, high in zip(self._watched, values[-2], values[-1], strict=True):
            before = self.ranges.get(name, (0.0, 0.0))
            self.ranges[name] = (min(before[0], float(low)), max(before[1], float(high)))
        return dict(zip(self._outputs, values, strict=False))


@contextmanager
def float_run(graph: StaticGraph, place: Path | None = None) -> Iterator[FloatRun]:
    """Open `graph` in float32 on the CPU, its weights with the values that the quantized ones stand for.

    Args:
        place: folder for its files; the system's for temporary ones unless given.
    """
    watched = graph.activations()
    with tempfile.TemporaryDirectory(prefix="pocketvlm-calibration-", dir=place) as folder:
        path = Path(folder) / "float.onnx"
        with TensorFile(Path(folder) / "float.data") as tensors:
            _write(graph, watched, GraphWriter(graph.name, tensors)).save(path, OPSET)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        yield FloatRun(session, list(graph.inputs), watched, graph.outputs)


def _write(graph: StaticGraph, watched: list[str], writer: GraphWriter) -> GraphWriter:
    for name, shape in graph.inputs.items():
        writer.input(TensorSpec(name, "float32", shape))
    for name, integers in graph.integers.items():
        writer.weight(name, integers)
    for name, values in graph.vectors.items():
        writer.weight(name, values)
    for name, matrix in graph.matrices.items():
        writer.weight(name, dequantized(matrix))
    for node in graph.nodes:
        op = "Identity" if node.cast else node.op
        writer.nodes(op, node.inputs, node.outputs, **node.attributes)
    for name in graph.outputs:
        writer.output(TensorSpec(name, "float32", graph.shapes[name]))
    one = writer.integers(1)
    for label, op in ((_LOW, "ReduceMin"), (_HIGH, "ReduceMax")):
        found = [writer.node("Reshape", [writer.node(op, [name], keepdims=0), one]) for name in watched]
        writer.nodes("Concat", found, [label], axis=0)
        writer.output(TensorSpec(label, "float32", (len(watched),)))
    return writer


def dequantized(matrix: Matrix) -> NDArray[np.float32]:
    """The matrix that the stored codes stand for, float32 [in, out]."""
    found = matrix.read()
    if isinstance(found, BlockWeights):
        return np.ascontiguousarray(found.dequantize().T) * matrix.row_scale
    codes, scales = found
    return codes.astype(np.float32) * (scales * matrix.row_scale)
