"""`Ops` recorded into a `StaticGraph`, in the forms that Qualcomm's tensor processor runs fastest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from pocketvlm.toolchain.backends.qnn.static_graph import Matrix, StaticGraph
from pocketvlm.toolchain.quantize.block import BlockWeights, per_channel_int8
from pocketvlm.toolchain.spec import DecoderSpec

Weights = Callable[[str], Tensor]
Int4 = Callable[[str], BlockWeights]
Attention = Literal["joined", "split"]

# Added to a score that must not count, where activations are floats; for 16-bit ones `calibrate.mask_scores` finds the value.
MASKED = -10_000.0
# What scores are called in the scope of their layer, before and behind the mask.
SCORES, MASKED_SCORES = "scores", "masked_scores"


class StaticOps:
    """Records the vision operations. Values are the names of graph values.

    Args:
        weights: canonical parameter name -> float32 tensor.
        int4: canonical prefix -> INT4 weights; None stores matrices as INT8 per output.
        masked: what is added to a score that must not count.
    """

    def __init__(self, graph: StaticGraph, weights: Weights, int4: Int4 | None = None, *, masked: float = MASKED) -> None:
        self.graph = graph
        self.weights = weights
        self.masked = masked
        self._int4 = int4

    def _shape(self, value: str) -> tuple[int, ...]:
        return self.graph.shapes[value]

    def linear(self, x: str, name: str, *, bias: bool) -> str:
        return self._linear(x, name, self._int4, bias=bias)

    def _linear(self, x: str, name: str, int4: Int4 | None, *, bias: bool) -> str:
        weight = self.weights(f"{name}.weight")
        outputs, inputs = weight.shape
        del weight

        def read() -> object:
            return int4(name) if int4 is not None else per_channel_int8(self.weights(f"{name}.weight"))

        matrix = Matrix(read, (inputs, outputs), np.ones(1, np.float32))  # type: ignore[arg-type]
        shape = (*self._shape(x)[:-1], outputs)
        product = self.graph.node("MatMul", [x, self.graph.matrix(f"{name}.weight", matrix)], shape)
        if not bias:
            return product
        return self.graph.node("Add", [product, self._parameter(f"{name}.bias")], shape)

    def linears(self, x: str, names: Sequence[str], *, bias: bool) -> list[str]:
        return [self.linear(x, name, bias=bias) for name in names]

    def _parameter(self, name: str) -> str:
        return self.graph.vector(name, self.weights(name).numpy())

    def patch_convolution(self, pixels: str, name: str, *, stride: int, bias: bool) -> str:
        raise NotImplementedError("the patch embedding stays on the CPU")

    def prepend_parameter(self, x: str, name: str) -> str:
        raise NotImplementedError("the patch embedding stays on the CPU")

    def add_parameter(self, x: str, name: str) -> str:
        return self.graph.node("Add", [x, self._parameter(name)], self._shape(x))

    def layer_norm(self, x: str, name: str, *, eps: float) -> str:
        inputs = [x, self._parameter(f"{name}.weight"), self._parameter(f"{name}.bias")]
        return self.graph.node("LayerNormalization", inputs, self._shape(x), axis=-1, epsilon=eps)

    def rms_norm(self, x: str, name: str, *, eps: float) -> str:
        inputs = [x, self._parameter(f"{name}.weight")]
        return self.graph.node("RMSNormalization", inputs, self._shape(x), axis=-1, epsilon=eps)

    def activation(self, x: str, kind: str) -> str:
        shape = self._shape(x)
        if kind == "gelu":
            return self.graph.node("Gelu", [x], shape)
        if kind == "gelu_pytorch_tanh":
            return self.graph.node("Gelu", [x], shape, approximate="tanh")
        if kind == "relu":
            return self.graph.node("Relu", [x], shape)
        inner = x
        if kind == "quick_gelu":
            inner = self.multiply(x, self.graph.constant("quick_gelu", np.full(1, 1.702, np.float32)))
        gate = self.graph.node("Sigmoid", [inner], shape, known=(0.0, 1.0))
        return self.multiply(x, gate)

    def add(self, a: str, b: str) -> str:
        return self.graph.node("Add", [a, b], np.broadcast_shapes(self._shape(a), self._shape(b)))

    def multiply(self, a: str, b: str) -> str:
        return self.graph.node("Mul", [a, b], np.broadcast_shapes(self._shape(a), self._shape(b)))

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        before = self._shape(x)
        sizes = [before[axis] if size == 0 else size for axis, size in enumerate(shape)]
        if -1 in sizes:
            sizes[sizes.index(-1)] = math.prod(before) // -math.prod(sizes)
        return self.graph.node("Reshape", [x, self.graph.index(*sizes)], sizes)

    def transpose(self, x: str, permutation: Sequence[int]) -> str:
        before = self._shape(x)
        return self.graph.node("Transpose", [x], [before[axis] for axis in permutation], perm=list(permutation))

    def concat(self, values: Sequence[str], axis: int) -> str:
        shape = list(self._shape(values[0]))
        shape[axis] = sum(self._shape(value)[axis] for value in values)
        return self.graph.node("Concat", values, shape, axis=axis)

    def slice(self, x: str, axis: int, start: int, stop: int) -> str:
        shape = list(self._shape(x))
        shape[axis] = stop - start
        bounds = [self.graph.index(value) for value in (start, stop, axis)]
        return self.graph.node("Slice", [x, *bounds], shape)

    def pad_end(self, x: str, axis: int, count: int) -> str:
        shape = list(self._shape(x))
        shape[axis] = count
        return self.concat([x, self.graph.constant("padding", np.zeros(shape, np.float32))], axis)

    def attention(self, query: str, key: str, value: str, *, heads: int) -> str:
        """Positions behind `valid_positions`, if that is set, are padding and get no weight."""
        batch, length, width = self._shape(query)
        size = width // heads
        query = self.scaled(query, size**-0.5)
        key, value = (self.graph.node("Requantize", [x], (batch, length, width), kind="int8") for x in (key, value))
        q, k, v = (self.transpose(self.reshape(x, (batch, length, heads, size)), (0, 2, 1, 3)) for x in (query, key, value))
        scores = self.graph.node("MatMul", [q, self.transpose(k, (0, 1, 3, 2))], (batch, heads, length, length))
        scores = self.graph.label(scores, SCORES)
        if self.valid_positions is not None and self.valid_positions < length:
            mask = np.zeros((1, 1, 1, length), np.float32)
            mask[..., self.valid_positions :] = self.masked
            scores = self.graph.label(self.add(scores, self.graph.constant("mask", mask)), MASKED_SCORES)
        mixed = self.graph.node("MatMul", [self.softmax(scores), v], (batch, heads, length, size))
        return self.reshape(self.transpose(mixed, (0, 2, 1, 3)), (batch, length, width))

    valid_positions: int | None = None

    def softmax(self, scores: str) -> str:
        """Softmax over the last dimension."""
        return self.graph.node("Softmax", [scores], self._shape(scores), known=(0.0, 1.0), axis=-1)

    def scaled(self, x: str, factor: float) -> str:
        """x * factor: in the weights, when x comes straight from a linear layer."""
        graph = self.graph
        node = graph.producer(x)
        offset = None
        if node is not None and node.op == "Add" and node.inputs[1].endswith(".bias"):
            offset, node = node.inputs[1], graph.producer(node.inputs[0])
        if node is None or node.op != "MatMul" or node.inputs[1] not in graph.matrices:
            return self.multiply(x, graph.constant("factor", np.full(1, factor, np.float32)))
        matrix = graph.matrices[node.inputs[1]]
        scaled = Matrix(matrix.read, matrix.shape, matrix.row_scale * np.float32(factor))
        graph.matrices[node.inputs[1]] = scaled
        if offset is not None:
            graph.vectors[offset] = graph.vectors[offset] * np.float32(factor)
        return x


class StaticDecoderOps(StaticOps):
    """Records the language model for a fixed number of positions and a cache of fixed size.

    Inputs of the graph beside the embeddings: cos and sin [1, T, 1, d] (sin with the sign of the rotation), mask [1, 1, 1, P]
    (0 for a filled column of the cache, `masked` for a free one), past_key.<i> int8 [1, kv, d, P], past_value.<i> int8
    [1, kv, P, d]. Outputs: new_key.<i> int8 [1, kv, d, T], new_value.<i> int8 [1, kv, T, d].

    The query heads of a key-value head are folded into the positions, so that no scores are reshaped; the mask is expanded
    once for all layers to that form. Inside the chunk, the causal mask is a constant.

    Args:
        length, capacity: positions of a call, and of the cache.
        attention: whether the chunk's keys and values join those of the cache before or after the products.
    """

    def __init__(
        self, graph: StaticGraph, weights: Weights, int4: Int4 | None, decoder: DecoderSpec, *, length: int, capacity: int,
        attention: Attention = "joined", masked: float = MASKED,
    ) -> None:  # fmt: skip
        super().__init__(graph, weights, int4, masked=masked)
        self._decoder = decoder
        self._attention = attention
        self._length, self._capacity = length, capacity
        self._mask = ""

    def embedding(self, token_ids: str, name: str) -> str:
        raise NotImplementedError("the embedding table stays on the CPU")

    def linear(self, x: str, name: str, *, bias: bool) -> str:
        # The output projection has INT8 weights.
        return self._linear(x, name, None if name == self._decoder.output_projection else self._int4, bias=bias)

    def last_position(self, x: str) -> str:
        length = self._shape(x)[1]
        return self.reshape(self.slice(x, 1, length - 1, length), (1, -1))

    def declare_positions(self) -> None:
        """Declare the inputs that all layers share."""
        decoder, graph = self._decoder, self.graph
        for name in ("cos", "sin"):
            graph.input(name, (1, self._length, 1, decoder.head_dim))
            graph.ranges[name] = (-1.0, 1.0)
        total = self._capacity + self._length
        graph.input("mask", (1, 1, 1, total))
        graph.ranges["mask"] = (self.masked, 0.0)
        if self._length == 1:
            self._mask = "mask"
            return
        groups = decoder.heads // decoder.kv_heads
        later = np.triu(np.ones((self._length, self._length), np.float32), 1) * self.masked
        causal = np.pad(np.tile(later, (groups, 1)), ((0, 0), (self._capacity, 0)))[None, None]
        with graph.scope("mask"):
            constant = graph.constant(f"causal.{self._length}", causal)
            self._mask = graph.node("Add", ["mask", constant], causal.shape, known=(self.masked, 0.0))

    def cached_attention(self, query: str, key: str, value: str, *, layer: int) -> str:
        decoder, graph, length = self._decoder, self.graph, self._length
        heads, kv_heads, size = decoder.heads, decoder.kv_heads, decoder.head_dim
        rows = length * (heads // kv_heads)
        query = self._rotate(self.scaled(query, size**-0.5), heads)
        key = self._rotate(key, kv_heads)
        past_key = graph.input(f"past_key.{layer}", (1, kv_heads, size, self._capacity), "int8")
        past_value = graph.input(f"past_value.{layer}", (1, kv_heads, self._capacity, size), "int8")
        new_key, new_value = self._columns(key, value, layer)
        graph.ties += [(new_key, past_key), (new_value, past_value)]
        by_head = self.transpose(query, (0, 2, 1, 3))
        folded = self.reshape(by_head, (1, kv_heads, rows, size))
        attend = {"joined": self._joined, "split": self._split}[self._attention]
        mixed = attend(folded, (past_key, new_key), (past_value, new_value))
        by_position = self.transpose(self.reshape(mixed, (1, heads, length, size)), (0, 2, 1, 3))
        return self.reshape(by_position, (1, length, heads * size))

    def _joined(self, query: str, keys: tuple[str, str], values: tuple[str, str]) -> str:
        """The chunk's columns are put behind those of the cache: one product for the scores, one for the output."""
        graph, size, total = self.graph, self._decoder.head_dim, self._capacity + self._length
        _, kv_heads, rows, _ = self._shape(query)
        key = graph.node("Concat", keys, (1, kv_heads, size, total), kind="int8", axis=3)
        value = graph.node("Concat", values, (1, kv_heads, total, size), kind="int8", axis=2)
        weights = self._weights(graph.node("MatMul", [query, key], (1, kv_heads, rows, total)))
        return graph.node("MatMul", [weights, value], (1, kv_heads, rows, size))

    def _split(self, query: str, keys: tuple[str, str], values: tuple[str, str]) -> str:
        """Cache and chunk are multiplied on their own: two products each, and only scores are put together."""
        graph, size, capacity, length = self.graph, self._decoder.head_dim, self._capacity, self._length
        _, kv_heads, rows, _ = self._shape(query)
        widths = (capacity, length)
        parts = [
            graph.node("MatMul", [query, key], (1, kv_heads, rows, width)) for key, width in zip(keys, widths, strict=True)
        ]
        weights = self._weights(self.concat(parts, 3))
        shapes = [(1, kv_heads, rows, width) for width in widths]
        shares = graph.nodes_out("Split", [weights, graph.index(*widths)], shapes, axis=3)
        mixed = [
            graph.node("MatMul", [share, value], (1, kv_heads, rows, size)) for share, value in zip(shares, values, strict=True)
        ]
        return self.add(mixed[0], mixed[1])

    def _weights(self, scores: str) -> str:
        scores = self.graph.label(scores, SCORES)
        return self.softmax(self.graph.label(self.add(scores, self._mask), MASKED_SCORES))

    def _columns(self, key: str, value: str, layer: int) -> tuple[str, str]:
        """What the chunk adds to the cache: key [1, T, kv, d] and value [1, T, kv * d], as it is stored.

        The key is transposed as a matrix: ONNX Runtime's layout pass moves a transposition of four dimensions behind the
        quantization of an output, where the provider refuses it, and leaves one of three dimensions alone (onnxruntime pull
        requests 20685 and 15008).
        """
        kv_heads, size, length = self._decoder.kv_heads, self._decoder.head_dim, self._length
        flat = self.graph.node("Requantize", [self.reshape(key, (1, length, -1))], (1, length, kv_heads * size), kind="int8")
        turned = self.graph.node("Transpose", [flat], (1, kv_heads * size, length), kind="int8", perm=[0, 2, 1])
        shape = (1, kv_heads, size, length)
        new_key = self.graph.node("Reshape", [turned, self.graph.index(*shape)], shape, kind="int8")
        by_head = self.transpose(self.reshape(value, (1, length, kv_heads, size)), (0, 2, 1, 3))
        new_value = self.graph.node("Requantize", [by_head], (1, kv_heads, length, size), kind="int8")
        return self.graph.output(new_key, f"new_key.{layer}"), self.graph.output(new_value, f"new_value.{layer}")

    def _rotate(self, x: str, heads: int) -> str:
        """Rotary positions of x [1, T, heads * d] -> [1, T, heads, d]."""
        size, length = self._decoder.head_dim, self._length
        x = self.reshape(x, (1, length, heads, size))
        half = (1, length, heads, size // 2)
        first, second = self.graph.nodes_out("Split", [x], [half, half], axis=-1, num_outputs=2)
        turned = self.concat([second, first], 3)
        return self.add(self.multiply(x, "cos"), self.multiply(turned, "sin"))
