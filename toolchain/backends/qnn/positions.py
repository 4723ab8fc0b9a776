"""The CPU's share of every decoder call: from the number of filled columns to what attention wants to know about positions.

As a graph of the bundle, it spares the runtimes any knowledge of rotary embeddings and masks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto

from pocketvlm.runtime.manifest import TensorSpec
from pocketvlm.toolchain.backends.onnx_graph import GraphWriter, TensorFile
from pocketvlm.toolchain.spec import DecoderSpec
from pocketvlm.toolchain.torch_ops import rotary_table


def write_positions(
    decoder: DecoderSpec, path: Path, tensors: TensorFile, *, length: int, capacity: int, masked: float
) -> None:
    """Write the graph: past_length int64 [1] -> cos, sin float32 [1, T, 1, d] and mask float32 [1, 1, 1, P + T]."""
    graph = GraphWriter("positions", tensors)
    inputs, outputs = tensors_of(decoder, length=length, capacity=capacity)
    for tensor in inputs:
        graph.input(tensor)
    cos, sin = (table.numpy() for table in rotary_table(decoder.rope, decoder.head_dim, capacity))
    rows = graph.node("Add", ["past_length", graph.constant(np.arange(length, dtype=np.int64))])
    # A chunk's padding may reach behind the last position.
    rows = graph.node("Min", [rows, graph.constant(np.array([capacity - 1], np.int64))])
    shape = graph.integers(1, length, 1, decoder.head_dim)
    for name, halves in (("cos", (cos, cos)), ("sin", (-sin, sin))):
        table = graph.weight(f"{name}_table", np.ascontiguousarray(np.concatenate(halves, 1)))
        graph.nodes("Reshape", [graph.node("Gather", [table, rows], axis=0), shape], [name])
    # The chunk's own columns stand behind those of the cache and are never free.
    columns = np.concatenate([np.arange(capacity), np.full(length, -1)])
    free = graph.node("GreaterOrEqual", [graph.weight(f"columns.{length}", columns), "past_length"])
    mask = graph.node("Mul", [graph.node("Cast", [free], to=TensorProto.FLOAT), graph.constant(np.array(masked, np.float32))])
    graph.nodes("Reshape", [mask, graph.integers(1, 1, 1, capacity + length)], ["mask"])
    for tensor in outputs:
        graph.output(tensor)
    graph.save(path)


def tensors_of(decoder: DecoderSpec, *, length: int, capacity: int) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the graph."""
    turned = (1, length, 1, decoder.head_dim)
    outputs = (TensorSpec("cos", "float32", turned), TensorSpec("sin", "float32", turned))
    return (TensorSpec("past_length", "int64", (1,)),), (*outputs, TensorSpec("mask", "float32", (1, 1, 1, capacity + length)))
