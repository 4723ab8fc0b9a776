"""Writes a `StaticGraph` with float16 activations and INT8 weights (BlueLM-V-3B, section 3.4, for the vision stages).

Matrix products become MatMulNBits with 8 bits, which the QNN provider hands to the NPU as weights with block scales; every
block of an output gets the output's one scale. No ranges are needed. SMALLEST_BLOCK must divide the widths of all matrices.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from pocketvlm.toolchain.backends.onnx_graph import MICROSOFT, GraphWriter, TensorFile
from pocketvlm.toolchain.backends.qnn.float_graph import OPSET
from pocketvlm.toolchain.backends.qnn.qdq_graph import tensors_of
from pocketvlm.toolchain.backends.qnn.static_graph import Matrix, Node, StaticGraph
from pocketvlm.toolchain.quantize.block import BlockWeights

SMALLEST_BLOCK = 16
_BLOCKS = (128, 64, 32, SMALLEST_BLOCK)
_MIDDLE = 128


def write_half(graph: StaticGraph, path: Path, tensors: TensorFile) -> None:
    """Write the model to `path`, its weights to `tensors`. Inputs and outputs stay float32."""
    writer = GraphWriter(graph.name, tensors)
    inputs, outputs = tensors_of(graph)
    inside: dict[str, str] = {}
    for tensor in inputs:
        source = writer.input(tensor)
        inside[source] = writer.nodes("Cast", [source], [f"{source}.half"], to=TensorProto.FLOAT16)[0]
    for name, integers in graph.integers.items():
        inside[name] = writer.weight(name, integers)
    for name, values in graph.vectors.items():
        inside[name] = writer.weight(f"{name}.half", values.astype(np.float16))
    for node in graph.nodes:
        results = [f"{name}.half" for name in node.outputs]
        _write(writer, graph, node, inside, results)
        inside |= dict(zip(node.outputs, results, strict=True))
    for tensor in outputs:
        writer.nodes("Cast", [inside[tensor.name]], [tensor.name], to=TensorProto.FLOAT)
        writer.output(tensor)
    writer.save(path, OPSET)


def _write(writer: GraphWriter, graph: StaticGraph, node: Node, inside: dict[str, str], results: list[str]) -> None:
    if node.cast:
        writer.nodes("Identity", [inside[node.inputs[0]]], results)
        return
    if node.op == "MatMul" and node.inputs[1] in graph.matrices:
        _product(writer, inside[node.inputs[0]], node.inputs[1], graph.matrices[node.inputs[1]], results)
        return
    writer.nodes(node.op, [inside[name] for name in node.inputs], results, **node.attributes)


def _product(writer: GraphWriter, x: str, name: str, matrix: Matrix, results: list[str]) -> None:
    found = matrix.read()
    assert not isinstance(found, BlockWeights)
    codes, scales = found
    inputs, outputs = codes.shape
    block = next(size for size in _BLOCKS if inputs % size == 0)
    unsigned = (codes.T.astype(np.int16) + _MIDDLE).astype(np.uint8).reshape(outputs, inputs // block, block)
    repeated: NDArray[np.float16] = np.repeat((scales * matrix.row_scale).astype(np.float16)[:, None], inputs // block, 1)
    weights = [writer.weight(f"{name}.codes", unsigned), writer.weight(f"{name}.block_scales", repeated)]
    writer.nodes(
        "MatMulNBits", [x, *weights], results, domain=MICROSOFT, K=inputs, N=outputs, bits=8, block_size=block
    )  # fmt: skip
