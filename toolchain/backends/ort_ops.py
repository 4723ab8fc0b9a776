"""`Ops` written down as an ONNX graph for ONNX Runtime's CPU kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketvlm.toolchain.backends.onnx_graph import MICROSOFT, GraphWriter
from pocketvlm.toolchain.quantize.block import BlockWeights, concatenate, per_channel_int8

Weights = Callable[[str], Tensor]
Quantize = Callable[[str], BlockWeights]

# What graphs of the scheme "int8" ask of the engine. On x86 processors without VNNI the products of unsigned activations
# and signed weights saturate at 16 bits otherwise.
INT8_ENGINE_OPTIONS = {"int8_products": "exact"}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How linear layers are stored and computed.

    Attributes:
        kind: "float32"; "int8" (INT8 weights per output channel, activations quantized per position); or "blocks" (4- or
            8-bit blocks from `quantize`, activations quantized to INT8 inside the kernel).
        quantize: canonical prefix -> block weights, for "blocks"; with "int8" their values instead of the checkpoint's.
    """

    kind: str
    quantize: Quantize | None = None


class OrtOps:
    """Writes the vision operations. Values are the names of graph values."""

    def __init__(self, graph: GraphWriter, weights: Weights, scheme: Scheme) -> None:
        self.graph = graph
        self.weights = weights
        self.scheme = scheme

    def _float_weight(self, name: str) -> str:
        return self.graph.shared_weight(name) or self.graph.weight(name, self.weights(name).numpy())

    def linear(self, x: str, name: str, *, bias: bool) -> str:
        return self._fused_linear(x, [name], bias=bias)[0]

    def linears(self, x: str, names: Sequence[str], *, bias: bool) -> list[str]:
        fused, sizes = self._fused_linear(x, names, bias=bias)
        return self.graph.nodes("Split", [fused, self.graph.integers(*sizes)], len(names), axis=-1)

    def _fused_linear(self, x: str, names: Sequence[str], *, bias: bool) -> tuple[str, list[int]]:
        """All layers in one product, and the number of outputs of each."""
        offset = self._bias(names) if bias else None
        if self.scheme.kind == "int8":
            return self._int8(x, names, offset)
        if self.scheme.kind == "blocks":
            return self._blocks(x, names, offset)
        label = "+".join(names)
        parts = [self.weights(f"{name}.weight").numpy() for name in names]
        matrix = self.graph.shared_weight(f"{label}.transposed")
        if matrix is None:
            matrix = self.graph.weight(f"{label}.transposed", np.ascontiguousarray(np.concatenate(parts).T))
        product = self.graph.node("MatMul", [x, matrix])
        result = product if offset is None else self.graph.node("Add", [product, offset])
        return result, [len(part) for part in parts]

    def _bias(self, names: Sequence[str]) -> str:
        stacked: NDArray[np.float32] = np.concatenate([self.weights(f"{name}.bias").numpy() for name in names])
        return self.graph.weight(f"{'+'.join(names)}.bias", stacked)

    def _int8(self, x: str, names: Sequence[str], offset: str | None) -> tuple[str, list[int]]:
        """DynamicQuantizeMatMul knows one range for all positions of a call.

        So each position is scaled to -1..1 first: a large activation in one takes no precision from the others, in other
        tiles of a batch among them. Zero points are given, although the operator takes 0 for granted, and to each product
        its own, because ONNX Runtime changes them where it turns signed weights into unsigned ones
        (`INT8_ENGINE_OPTIONS`).
        """
        graph, label = self.graph, "+".join(names)
        parts = [per_channel_int8(self._matrix(name)) for name in names]
        codes = graph.weight(f"{label}.int8", np.concatenate([part[0] for part in parts], 1))
        scales = graph.weight(f"{label}.int8_scales", np.concatenate([part[1] for part in parts]))
        largest = graph.node("ReduceMax", [graph.node("Abs", [x]), graph.integers(-1)], keepdims=1)
        largest = graph.node("Max", [largest, graph.constant(np.array(1e-20, np.float32))])
        scaled = graph.node("Div", [x, largest])
        zero = graph.weight(f"{label}.int8_zero", np.array(0, np.int8))
        product = graph.node("DynamicQuantizeMatMul", [scaled, codes, scales, zero], domain=MICROSOFT)
        result = graph.node("Mul", [product, largest])
        return result if offset is None else graph.node("Add", [result, offset]), [len(part[1]) for part in parts]

    def _matrix(self, name: str) -> Tensor:
        """The weights float32 [out, in] that "int8" rounds."""
        if self.scheme.quantize is None:
            return self.weights(f"{name}.weight")
        return torch.from_numpy(self.scheme.quantize(name).dequantize())

    def _blocks(self, x: str, names: Sequence[str], offset: str | None) -> tuple[str, list[int]]:
        assert self.scheme.quantize is not None
        parts = [self.scheme.quantize(name) for name in names]
        weights = concatenate(parts)
        codes, scales, zeros = self.block_initializers("+".join(names), weights)
        inputs = [x, codes, scales, *zeros]
        if offset:
            inputs += [""] * (5 - len(inputs)) + [offset]
        result = self.graph.node(
            "MatMulNBits",
            inputs,
            domain=MICROSOFT,
            K=weights.inputs,
            N=weights.codes.shape[0],
            bits=weights.bits,
            block_size=weights.block_size,
            accuracy_level=4,
        )
        return result, [len(part.codes) for part in parts]

    def block_initializers(self, label: str, weights: BlockWeights) -> tuple[str, str, list[str]]:
        """Names of the codes, the scales and (unless symmetric: none) the zero points of a block-quantized matrix.

        Written once per external file.
        """
        codes, scales = f"{label}.codes", f"{label}.scales"
        zeros = [] if weights.symmetric else [f"{label}.zeros"]
        if not all(self.graph.shared_weight(name) for name in (codes, scales, *zeros)):
            self.graph.weight(codes, weights.packed())
            self.graph.weight(scales, weights.scales)
            for name in zeros:
                self.graph.weight(name, weights.packed_zeros())
        return codes, scales, zeros

    def patch_convolution(self, pixels: str, name: str, *, stride: int, bias: bool) -> str:
        kernel = self._float_weight(f"{name}.weight")
        offset = [self._float_weight(f"{name}.bias")] if bias else []
        grid = self.graph.node("Conv", [pixels, kernel, *offset], strides=[stride, stride])
        size = self.weights(f"{name}.weight").shape[0]
        flat = self.graph.node("Reshape", [grid, self.graph.integers(0, size, -1)])
        return self.graph.node("Transpose", [flat], perm=[0, 2, 1])

    def add_parameter(self, x: str, name: str) -> str:
        return self.graph.node("Add", [x, self._float_weight(name)])

    def prepend_parameter(self, x: str, name: str) -> str:
        width = self.weights(name).shape[0]
        batch = self.graph.node("Shape", [x], start=0, end=1)
        target = self.graph.node("Concat", [batch, self.graph.integers(1, width)], axis=0)
        token = self.graph.node("Expand", [self._float_weight(name), target])
        return self.graph.node("Concat", [token, x], axis=1)

    def layer_norm(self, x: str, name: str, *, eps: float) -> str:
        inputs = [x, self._float_weight(f"{name}.weight"), self._float_weight(f"{name}.bias")]
        return self.graph.node("LayerNormalization", inputs, epsilon=eps, axis=-1)

    def rms_norm(self, x: str, name: str, *, eps: float) -> str:
        return self.graph.node("RMSNormalization", [x, self._float_weight(f"{name}.weight")], epsilon=eps, axis=-1)

    def activation(self, x: str, kind: str) -> str:
        if kind == "gelu":
            return self.graph.node("Gelu", [x], domain=MICROSOFT)
        if kind == "gelu_pytorch_tanh":
            return self.graph.node("FastGelu", [x], domain=MICROSOFT)
        if kind in ("quick_gelu", "silu"):
            return self.graph.node("QuickGelu", [x], domain=MICROSOFT, alpha=1.702 if kind == "quick_gelu" else 1.0)
        return self.graph.node({"relu": "Relu"}[kind], [x])

    def add(self, a: str, b: str) -> str:
        return self.graph.node("Add", [a, b])

    def multiply(self, a: str, b: str) -> str:
        return self.graph.node("Mul", [a, b])

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        return self.graph.node("Reshape", [x, self.graph.integers(*shape)])

    def transpose(self, x: str, permutation: Sequence[int]) -> str:
        return self.graph.node("Transpose", [x], perm=list(permutation))

    def concat(self, values: Sequence[str], axis: int) -> str:
        return self.graph.node("Concat", values, axis=axis)

    def slice(self, x: str, axis: int, start: int, stop: int) -> str:
        bounds = [self.graph.integers(value) for value in (start, stop, axis)]
        return self.graph.node("Slice", [x, *bounds])

    def pad_end(self, x: str, axis: int, count: int) -> str:
        return self.graph.node("Pad", [x, self.graph.integers(0, count), "", self.graph.integers(axis)])

    def attention(self, query: str, key: str, value: str, *, heads: int) -> str:
        return self.graph.node("MultiHeadAttention", [query, key, value], domain=MICROSOFT, num_heads=heads)
