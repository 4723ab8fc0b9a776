"""`DecoderOps` for ONNX Runtime's CPU: one graph that serves a prefill chunk and a single decoded token.

With an INT8 cache, GroupQueryAttention is the fastest kernel for one token and a slow one for a chunk (its INT8 path
takes about four times its float path at 128 queries). So each layer holds an `If` on the length: one token goes
through GroupQueryAttention; a chunk is quantized, written into the cache by TensorScatter and attended to with two
float matrix products, K's scales folded into the query and V's into the output. Both branches write the same cache in
place: `present_*` is bound to the buffer of `past_*`. All linear layers stand outside the branches, so their weights
are packed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from pocketvlm.toolchain.backends.onnx_graph import MICROSOFT, GraphWriter
from pocketvlm.toolchain.backends.ort_ops import OrtOps, Scheme, Weights
from pocketvlm.toolchain.quantize.kv_cache import KvScales
from pocketvlm.toolchain.spec import DecoderSpec
from pocketvlm.toolchain.torch_ops import rotary_table

_MASKED = -1e9


@dataclass(frozen=True, slots=True)
class _Lengths:
    """Names of values computed once per call from `past_length` and the length of the embeddings."""

    past: str
    length: str
    total: str
    total_int32: str
    last_int32: str
    is_token: str
    mask: str


class OrtDecoderOps(OrtOps):
    """Adds the language model's operations. `scales` None means a float32 cache."""

    def __init__(
        self, graph: GraphWriter, weights: Weights, scheme: Scheme, head: Scheme, decoder: DecoderSpec,
        scales: KvScales | None, positions: int,
    ) -> None:  # fmt: skip
        super().__init__(graph, weights, scheme)
        self._body, self._head = scheme, head
        self._decoder = decoder
        self._scales = scales
        self._positions = positions
        self._lengths: _Lengths | None = None

    def embedding(self, token_ids: str, name: str) -> str:
        if self._head.kind != "blocks":
            return self.graph.node("Gather", [self._float_weight(f"{name}.weight"), token_ids])
        assert self._head.quantize is not None
        table = self._head.quantize(name)
        codes, scales, zeros = self.block_initializers(name, table)
        rows_of_bytes = (table.codes.shape[0], table.codes.shape[1] * table.bits // 8)
        flat = self.graph.reshaped_weight(codes, rows_of_bytes)
        rows = self.graph.node(
            "GatherBlockQuantized",
            [flat, token_ids, scales, *zeros],
            domain=MICROSOFT,
            bits=table.bits,
            block_size=table.block_size,
            gather_axis=0,
            quantize_axis=1,
        )
        whole_blocks = table.codes.shape[1] == table.inputs
        return rows if whole_blocks else self.slice(rows, 2, 0, table.inputs)

    def linear(self, x: str, name: str, *, bias: bool) -> str:
        # The output projection has a scheme of its own; tied, it is the embedding table.
        self.scheme = self._head if name == self._decoder.output_projection else self._body
        if name == self._decoder.output_projection and self._head.kind == "float32" and not bias:
            # On one position's [1, H]; the table as it is stored, so that a tied one is stored once.
            return self.graph.node("Gemm", [x, self._float_weight(f"{name}.weight")], transB=1)
        return super().linear(x, name, bias=bias)

    def linears(self, x: str, names: Sequence[str], *, bias: bool) -> list[str]:
        self.scheme = self._body
        return super().linears(x, names, bias=bias)

    def last_position(self, x: str) -> str:
        last = self.graph.node("Gather", [x, self.graph.constant(np.array(-1, np.int64))], axis=1)
        return self.graph.node("Reshape", [last, self.graph.integers(1, self._decoder.hidden_size)])

    def cached_attention(self, query: str, key: str, value: str, *, layer: int) -> str:
        lengths = self._lengths = self._lengths or self._measure(query)
        spec = self._decoder
        query, key = self._rotate(query, lengths, spec.heads), self._rotate(key, lengths, spec.kv_heads)
        if self._scales is None:
            return self._float_attention(query, key, value, layer, lengths)
        names = [self.graph.fresh("attention"), f"present_key.{layer}", f"present_value.{layer}"]
        kinds = [TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT8]
        constants = self._scale_constants(layer, self._scales)
        with self.graph.subgraph() as token:
            outputs = self._token_attention(query, key, value, layer, lengths)
        token_body = token.body(f"token_{layer}", list(zip(outputs, kinds, strict=True)))
        with self.graph.subgraph() as chunk:
            outputs = self._chunk_attention(query, key, value, layer, lengths, constants)
        chunk_body = chunk.body(f"chunk_{layer}", list(zip(outputs, kinds, strict=True)))
        self.graph.nodes("If", [lengths.is_token], names, then_branch=token_body, else_branch=chunk_body)
        return names[0]

    def _measure(self, x: str) -> _Lengths:
        graph = self.graph
        zero, one = graph.integers(0), graph.integers(1)
        length = graph.node("Shape", [x], start=1, end=2)
        total = graph.node("Add", ["past_length", length])
        total_int32 = graph.node("Cast", [graph.node("Squeeze", [total, zero])], to=TensorProto.INT32)
        last_int32 = graph.node("Cast", [graph.node("Sub", [total, one])], to=TensorProto.INT32)
        is_token = graph.node("Squeeze", [graph.node("Equal", [length, one]), zero])
        mask = "" if self._scales is None else self._mask(length, total, is_token)
        return _Lengths("past_length", length, total, total_int32, last_int32, is_token, mask)

    def _mask(self, length: str, total: str, is_token: str) -> str:
        """Causal mask float32 [L, past + L], added to the scores of a chunk; a single token needs none."""
        graph = self.graph
        with graph.subgraph() as token:
            unused = graph.node("Identity", [graph.constant(np.zeros((1, 1), np.float32))])
        with graph.subgraph() as chunk:
            start, step = graph.constant(np.array(0, np.int64)), graph.constant(np.array(1, np.int64))
            axis = graph.integers(0)
            rows = graph.node("Range", [start, graph.node("Squeeze", [length, axis]), step])
            rows = graph.node("Unsqueeze", [graph.node("Add", [rows, "past_length"]), graph.integers(1)])
            columns = graph.node("Range", [start, graph.node("Squeeze", [total, axis]), step])
            seen = graph.node("LessOrEqual", [columns, rows])
            mask = graph.node("Where", [seen, *(graph.constant(np.array(value, np.float32)) for value in (0.0, _MASKED))])
        bodies = {
            "then_branch": token.body("token_mask", [(unused, TensorProto.FLOAT)]),
            "else_branch": chunk.body("chunk_mask", [(mask, TensorProto.FLOAT)]),
        }
        return graph.node("If", [is_token], **bodies)

    def _rotate(self, x: str, lengths: _Lengths, heads: int) -> str:
        graph = self.graph
        cos, sin = graph.shared_weight("rotary.cos"), graph.shared_weight("rotary.sin")
        if cos is None or sin is None:
            table = rotary_table(self._decoder.rope, self._decoder.head_dim, self._positions)
            cos, sin = graph.weight("rotary.cos", table[0].numpy()), graph.weight("rotary.sin", table[1].numpy())
        return graph.node("RotaryEmbedding", [x, lengths.past, cos, sin], domain=MICROSOFT, num_heads=heads)

    def _float_attention(self, query: str, key: str, value: str, layer: int, lengths: _Lengths) -> str:
        spec = self._decoder
        last = lengths.last_int32
        inputs = [query, key, value, f"past_key.{layer}", f"past_value.{layer}", last, lengths.total_int32]
        names = [self.graph.fresh("attention"), f"present_key.{layer}", f"present_value.{layer}"]
        self.graph.nodes(
            "GroupQueryAttention", inputs, names, domain=MICROSOFT, num_heads=spec.heads, kv_num_heads=spec.kv_heads
        )
        return names[0]

    def _scale_constants(self, layer: int, scales: KvScales) -> dict[str, str]:
        """Per-channel scales of one layer as [1, kv_heads, 1, d] (and flat, for GroupQueryAttention)."""
        spec, graph = self._decoder, self.graph
        found: dict[str, str] = {}
        for kind, values in (("key", scales.keys[layer]), ("value", scales.values[layer])):
            shaped: NDArray[np.float32] = values.reshape(1, spec.kv_heads, 1, spec.head_dim)
            found[kind] = graph.weight(f"cache.{kind}_scale.{layer}", shaped)
            found[f"{kind}_inverse"] = graph.weight(f"cache.{kind}_inverse.{layer}", (1.0 / shaped).astype(np.float32))
            graph.weight(f"cache.{kind}_flat.{layer}", values.reshape(-1))
        return found

    def _token_attention(self, query: str, key: str, value: str, layer: int, lengths: _Lengths) -> list[str]:
        spec = self._decoder
        last = lengths.last_int32
        cache = [f"past_key.{layer}", f"past_value.{layer}", last, lengths.total_int32]
        scales = [f"cache.key_flat.{layer}", f"cache.value_flat.{layer}"]
        return self.graph.nodes(
            "GroupQueryAttention",
            [query, key, value, *cache, "", "", "", "", "", *scales],
            3,
            domain=MICROSOFT,
            num_heads=spec.heads,
            kv_num_heads=spec.kv_heads,
            k_quant_type="PER_CHANNEL",
            v_quant_type="PER_CHANNEL",
            kv_cache_bit_width=8,
        )

    def _chunk_attention(
        self, query: str, key: str, value: str, layer: int, lengths: _Lengths, scales: dict[str, str]
    ) -> list[str]:
        spec, graph = self._decoder, self.graph
        heads, kv_heads, size = spec.heads, spec.kv_heads, spec.head_dim
        groups = heads // kv_heads
        present = [
            self._append(value_name, f"past_{kind}.{layer}", scales[f"{kind}_inverse"], lengths)
            for kind, value_name in (("key", key), ("value", value))
        ]
        keys, values = (
            graph.node(
                "Cast",
                [graph.node("Slice", [cache, graph.integers(0), lengths.total, graph.integers(2)])],
                to=TensorProto.FLOAT,
            )
            for cache in present
        )
        by_head = graph.node("Transpose", [self.reshape(query, (0, 0, heads, size))], perm=[0, 2, 1, 3])
        grouped = graph.node("Mul", [self.reshape(by_head, (1, kv_heads, -1, size)), scales["key"]])
        scores = graph.node("FusedMatMul", [grouped, keys], domain=MICROSOFT, transB=1, alpha=float(size**-0.5))
        shape = graph.node("Concat", [graph.integers(1, kv_heads, groups), lengths.length, lengths.total], axis=0)
        masked = graph.node("Add", [graph.node("Reshape", [scores, shape]), lengths.mask])
        weights = graph.node("Softmax", [masked], axis=-1)
        flat_shape = graph.node("Concat", [graph.integers(1, kv_heads, -1), lengths.total], axis=0)
        mixed = graph.node("MatMul", [graph.node("Reshape", [weights, flat_shape]), values])
        mixed = graph.node("Mul", [mixed, scales["value"]])
        merged = graph.node("Transpose", [self.reshape(mixed, (1, heads, -1, size))], perm=[0, 2, 1, 3])
        return [self.reshape(merged, (1, -1, heads * size)), *present]

    def _append(self, x: str, past: str, inverse_scale: str, lengths: _Lengths) -> str:
        """Quantize a chunk [1, L, kv_heads * d] and write it into the cache behind `past_length`."""
        spec, graph = self._decoder, self.graph
        by_head = graph.node("Transpose", [self.reshape(x, (0, 0, spec.kv_heads, spec.head_dim))], perm=[0, 2, 1, 3])
        rounded = graph.node("Round", [graph.node("Mul", [by_head, inverse_scale])])
        bounds = [graph.constant(np.array(value, np.float32)) for value in (-128.0, 127.0)]
        codes = graph.node("Cast", [graph.node("Clip", [rounded, *bounds])], to=TensorProto.INT8)
        return graph.node("TensorScatter", [past, codes, lengths.past], axis=2, mode="linear")
