"""Writes a `StaticGraph` with quantized activations: each operator between DequantizeLinear and QuantizeLinear.

Activations have 16 bits, asymmetric per tensor. What is the second factor of a product of two activations (keys and values)
has 8 bits, symmetric: the NPU multiplies 16 bits with 8, and makes 8 of 16 by itself, less exactly. Weights are INT4 per
channel or LPBQ, INT8 per channel, or, for biases and norms, 16 bits per tensor. This is the form in which ONNX Runtime's QNN
provider recognises a quantized operator; its CPU provider runs the same file, which gives the reference that the NPU's numbers
are held against.

Inputs and outputs are float32 or int8: Java's ONNX Runtime has no uint16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from pocketvlm.runtime.manifest import TensorSpec
from pocketvlm.toolchain.backends.onnx_graph import MICROSOFT, GraphWriter, TensorFile
from pocketvlm.toolchain.backends.qnn.float_graph import OPSET, dequantized
from pocketvlm.toolchain.backends.qnn.static_graph import Kind, Matrix, Node, Range, StaticGraph
from pocketvlm.toolchain.quantize import lpbq
from pocketvlm.toolchain.quantize.block import BlockWeights

_DTYPES: dict[Kind, type[np.unsignedinteger[Any] | np.signedinteger[Any]]] = {"uint16": np.uint16, "int8": np.int8}
_INT8_MOST = 127
_SMALLEST = 1e-6
_BLOCK = 32
# MatMulNBits' accuracy level for float32 activations.
_FLOAT_PRODUCTS = 1


class Quantization:
    """How a group of values is stored: value = (code - zero) * scale."""

    def __init__(self, kind: Kind, low: float, high: float) -> None:
        low, high = min(low, 0.0), max(high, 0.0)
        self.kind = kind
        if kind == "int8":
            self.scale, self.zero = np.float32(max(-low, high, _SMALLEST) / _INT8_MOST), 0
            return
        self.scale = np.float32(max(high - low, _SMALLEST) / 65535)
        self.zero = int(np.clip(round(-low / float(self.scale)), 0, 65535))

    def encode(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """Float values -> codes."""
        bounds = np.iinfo(_DTYPES[self.kind])
        codes: NDArray[Any] = np.clip(np.rint(values / self.scale) + self.zero, bounds.min, bounds.max)
        return codes.astype(_DTYPES[self.kind])

    @property
    def parameters(self) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Scale and zero point as ONNX stores them."""
        return np.array(self.scale, np.float32), np.array(self.zero, _DTYPES[self.kind])


def quantizations(graph: StaticGraph, ranges: Mapping[str, Range]) -> dict[str, Quantization]:
    """Quantization of every value, the same for all members of a group.

    Raises:
        KeyError: no range is known for a value.
    """
    groups = graph.groups()
    joined: dict[str, Range] = {}
    kinds: dict[str, Kind] = {}
    for value, group in groups.items():
        if value in graph.vectors:
            low, high = float(graph.vectors[value].min()), float(graph.vectors[value].max())
        else:
            low, high = graph.ranges.get(value) or ranges[value]
        before = joined.get(group, (0.0, 0.0))
        joined[group] = (min(before[0], low), max(before[1], high))
        if value in graph.kinds:
            kinds[group] = graph.kinds[value]
    made = {group: Quantization(kinds.get(group, "uint16"), *joined[group]) for group in joined}
    return {value: made[group] for value, group in groups.items()}


def write_qdq(graph: StaticGraph, ranges: Mapping[str, Range], path: Path, tensors: TensorFile) -> None:
    """Write the model to `path`, its weights to `tensors`, which other graphs of the same weights share."""
    writer = _Writer(graph, quantizations(graph, ranges), GraphWriter(graph.name, tensors))
    writer.write().save(path, OPSET)


def write_packed(graph: StaticGraph, ranges: Mapping[str, Range], path: Path, tensors: TensorFile) -> None:
    """The same numbers for the CPU alone, where weights are not unpacked in every run.

    ONNX Runtime's CPU computes every DequantizeLinear of a weight each time, on one core, which is most of what a token takes.
    """
    writer = _PackedWriter(graph, quantizations(graph, ranges), GraphWriter(graph.name, tensors))
    writer.write().save(path, OPSET)


def tensors_of(graph: StaticGraph) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as the runtime sees them."""

    def spec(name: str) -> TensorSpec:
        return TensorSpec(name, "int8" if graph.kinds.get(name) == "int8" else "float32", graph.shapes[name])

    return tuple(map(spec, graph.inputs)), tuple(map(spec, graph.outputs))


class _Writer:
    def __init__(self, graph: StaticGraph, known: dict[str, Quantization], writer: GraphWriter) -> None:
        self._graph, self._known, self._writer = graph, known, writer
        self._float: dict[str, str] = {}
        self._groups = graph.groups()

    def write(self) -> GraphWriter:
        graph, writer = self._graph, self._writer
        inputs, outputs = tensors_of(graph)
        for tensor in inputs:
            writer.input(tensor)
            name = tensor.name
            codes = name if tensor.dtype == "int8" else self._quantize(name, name, f"{name}.codes")
            self._float[name] = self._dequantize(codes, name)
        for name, integers in graph.integers.items():
            self._float[name] = writer.weight(name, integers)
        for name, values in graph.vectors.items():
            self._float[name] = self._vector(name, values)
        self._matrices()
        for node in graph.nodes:
            self._node(node)
        for tensor in outputs:
            writer.output(tensor)
        return writer

    def _matrices(self) -> None:
        for name, matrix in self._graph.matrices.items():
            self._float[name] = self._matrix(name, matrix)

    def _node(self, node: Node) -> None:
        if node.cast:
            raw = [self._float[node.inputs[0]]]
        else:
            raw = [f"{name}.value" for name in node.outputs]
            self._operator(node, raw)
        for name, value in zip(node.outputs, raw, strict=True):
            self._result(name, value)

    def _operator(self, node: Node, results: list[str]) -> None:
        self._writer.nodes(node.op, [self._float[name] for name in node.inputs], results, **node.attributes)

    def _result(self, name: str, value: str) -> None:
        """Quantize a result; an output is int8 codes or the dequantized value."""
        outward = name in self._graph.outputs
        if outward and self._known[name].kind == "int8":
            self._quantize(value, name, name)
            self._float[name] = self._dequantize(name, name)
        else:
            codes = self._quantize(value, name, f"{name}.codes")
            self._float[name] = self._dequantize(codes, name, name if outward else None)

    def _parameters(self, name: str) -> list[str]:
        scale, zero = self._known[name].parameters
        label = self._groups[name]
        return [self._writer.weight(f"{label}.scale", scale), self._writer.weight(f"{label}.zero", zero)]

    def _quantize(self, value: str, name: str, target: str) -> str:
        return self._writer.nodes("QuantizeLinear", [value, *self._parameters(name)], [target])[0]

    def _dequantize(self, codes: str, name: str, target: str | None = None) -> str:
        return self._writer.nodes("DequantizeLinear", [codes, *self._parameters(name)], [target or f"{name}.float"])[0]

    def _vector(self, name: str, values: NDArray[np.float32]) -> str:
        known = self._known.get(name) or Quantization("uint16", float(values.min()), float(values.max()))
        codes = self._writer.weight(f"{name}.codes", known.encode(values))
        scale, zero = known.parameters
        parameters = [self._writer.weight(f"{name}.scale", scale), self._writer.weight(f"{name}.zero", zero)]
        return self._writer.nodes("DequantizeLinear", [codes, *parameters], [f"{name}.float"])[0]

    def _matrix(self, name: str, matrix: Matrix) -> str:
        found = matrix.read()
        if isinstance(found, BlockWeights):
            return self._blocks(name, found, matrix.row_scale)
        codes, scales = found
        return self._per_channel(name, self._writer.weight(f"{name}.int8", codes), scales * matrix.row_scale, np.int8)

    def _blocks(self, name: str, weights: BlockWeights, row_scale: NDArray[np.float32]) -> str:
        writer = self._writer
        outputs, blocks = weights.scales.shape
        codes = self._int4(f"{name}.int4", weights.codes[:, : weights.inputs].T)
        if blocks == 1:
            return self._per_channel(name, codes, weights.scales[:, 0] * row_scale, None)
        steps, channel = lpbq.factor(weights.scales)
        # The scales as a quantized tensor themselves: that is what the provider recognises as LPBQ and takes over as it is.
        # (Its option enable_block_quant_weight_optimization turns plain block scales into LPBQ, too, and rounds them anew.)
        inputs = [writer.weight(f"{name}.steps", np.ascontiguousarray(steps.T))]
        inputs.append(writer.weight(f"{name}.scales", channel * row_scale))
        inputs.append(writer.weight(f"{name}.no_steps", np.zeros(outputs, np.uint8)))
        scales = writer.nodes("DequantizeLinear", inputs, [f"{name}.block_scales"], axis=1)[0]
        zeros = self._int4(f"{name}.zeros", np.full((blocks, outputs), 8, np.uint8))
        inputs = [codes, scales, zeros]
        return writer.nodes("DequantizeLinear", inputs, [f"{name}.float"], axis=0, block_size=weights.block_size)[0]

    def _per_channel(self, name: str, codes: str, scales: NDArray[np.float32], dtype: type[np.int8] | None) -> str:
        """Symmetric, one scale an output; `dtype` None means INT4."""
        if dtype is None:
            zeros = self._int4(f"{name}.zeros", np.full(len(scales), 8, np.uint8))
        else:
            zeros = self._writer.weight(f"{name}.zeros", np.zeros(len(scales), dtype))
        inputs = [codes, self._writer.weight(f"{name}.scales", scales), zeros]
        return self._writer.nodes("DequantizeLinear", inputs, [f"{name}.float"], axis=1)[0]

    def _int4(self, name: str, codes: NDArray[np.uint8]) -> str:
        """Codes 0 .. 15 around 8 as ONNX's INT4, two to a byte, the first one low."""
        known = self._writer.shared_weight(name)
        if known is not None:
            return known
        flat = ((codes.reshape(-1) - 8) & 15).astype(np.uint8)
        flat = np.append(flat, np.uint8(0)) if flat.size % 2 else flat
        packed = flat[0::2] | (flat[1::2] << 4)
        return self._writer.packed_weight(name, packed.astype(np.uint8), TensorProto.INT4, codes.shape)


class _PackedWriter(_Writer):
    """Writes products with INT4 weights as MatMulNBits, and those with INT8 weights with the floats that these stand for."""

    def _matrices(self) -> None:
        """Written with their products."""

    def _operator(self, node: Node, results: list[str]) -> None:
        name = node.inputs[1] if node.op == "MatMul" else ""
        matrix, writer = self._graph.matrices.get(name), self._writer
        if matrix is None:
            super()._operator(node, results)
            return
        x, weights = self._float[node.inputs[0]], matrix.read()
        if not isinstance(weights, BlockWeights):
            writer.nodes("MatMul", [x, writer.weight(name, dequantized(matrix))], results)
            return
        weights = _in_blocks(weights)
        inputs = [x, writer.weight(f"{name}.packed", weights.packed())]
        inputs.append(writer.weight(f"{name}.block_scales", weights.scales * matrix.row_scale.reshape(-1, 1)))
        writer.nodes(
            "MatMulNBits", inputs, results, domain=MICROSOFT, K=weights.inputs, N=len(weights.scales), bits=weights.bits,
            block_size=weights.block_size, accuracy_level=_FLOAT_PRODUCTS,
        )  # fmt: skip


def _in_blocks(weights: BlockWeights) -> BlockWeights:
    """Symmetric weights in blocks that MatMulNBits takes: one scale a row is repeated for every block."""
    if weights.scales.shape[1] > 1:
        return weights
    blocks = -(-weights.inputs // _BLOCK)
    codes = weights.codes[:, : weights.inputs]
    middle = 1 << (weights.bits - 1)
    codes = np.pad(codes, ((0, 0), (0, blocks * _BLOCK - weights.inputs)), constant_values=middle)
    scales = np.repeat(weights.scales, blocks, 1)
    return replace(weights, codes=codes, scales=scales, zeros=np.full(scales.shape, middle, np.uint8), block_size=_BLOCK)
