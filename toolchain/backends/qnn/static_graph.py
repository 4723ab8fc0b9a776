"""A graph with fixed shapes, recorded once and then written with float or with quantized (QDQ) activations.

The recorder knows the shape of every value, so that components may use 0 and -1 in a reshape, and gives values names that
depend on their scope alone: layer 3 recorded by itself and layer 3 inside a part of eight have the same names. So ranges that
were observed layer by layer fit every graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pocketvlm.toolchain.quantize.block import BlockWeights

Kind = Literal["uint16", "int8"]
Range = tuple[float, float]

# Operators that move values without changing them: their inputs and outputs share one quantization.
_MOVES = frozenset({"Reshape", "Transpose", "Concat", "Split", "Slice", "Expand", "Gather"})


@dataclass(frozen=True, slots=True)
class Matrix:
    """Weights of a linear layer, stored [in, out], read when the graph is written.

    Attributes:
        read: gives them. INT8 as (codes int8 [in, out], scales float32 [out]); INT4 as symmetric `BlockWeights` [out, in]: one
            block a row is per channel, several are LPBQ.
        row_scale: multiplies the scales of the outputs, float32 [out] or [1].
    """

    read: Callable[[], BlockWeights | tuple[NDArray[np.int8], NDArray[np.float32]]]
    shape: tuple[int, int]
    row_scale: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. `cast` marks a change of quantization without an operator."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    @property
    def cast(self) -> bool:
        """Whether the node only quantizes its input anew."""
        return self.op == "Requantize"

    @property
    def moves(self) -> bool:
        """Whether inputs and outputs hold the same numbers."""
        return self.op in _MOVES

    def data_inputs(self) -> tuple[str, ...]:
        """The inputs that are activations or their like, not shapes or indices."""
        return self.inputs if self.op in ("Concat",) or not self.moves else self.inputs[:1]


@dataclass(slots=True)
class StaticGraph:
    """Records nodes; values are names.

    Attributes:
        inputs: name -> shape of the graph's inputs.
        kinds: quantization of values that are not plain 16-bit activations.
        vectors: float parameters and constants by name.
        ties: pairs of values that share one quantization (a cache's old and new columns).
        ranges: ranges that are known without looking, as a softmax's.
    """

    name: str
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    matrices: dict[str, Matrix] = field(default_factory=dict)
    integers: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    ties: list[tuple[str, str]] = field(default_factory=list)
    ranges: dict[str, Range] = field(default_factory=dict)
    _scope: str = ""
    _counts: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Values that are made inside are named and numbered under `name`."""
        outer, self._scope = self._scope, name
        try:
            yield
        finally:
            self._scope = outer

    def fresh(self, hint: str) -> str:
        """A name that nothing else has, the same whenever the same calls are made in this scope."""
        label = f"{self._scope}/{hint}" if self._scope else hint
        self._counts[label] = self._counts.get(label, 0) + 1
        return f"{label}_{self._counts[label]}"

    def input(self, name: str, shape: Sequence[int], kind: Kind = "uint16") -> str:
        """Declare an input; outside it is float32, or int8 when `kind` says so."""
        self.inputs[name] = self.shapes[name] = tuple(shape)
        if kind != "uint16":
            self.kinds[name] = kind
        return name

    def output(self, value: str, name: str) -> str:
        """Make a value an output of this name."""
        self.outputs.append(self.rename(value, name))
        return name

    def label(self, value: str, hint: str) -> str:
        """Give a value a name of this scope, for those who look for it."""
        return self.rename(value, f"{self._scope}/{hint}")

    def rename(self, value: str, name: str) -> str:
        """Give a value another name, which does not depend on how the graph is cut."""
        for index, node in enumerate(self.nodes):
            if value in node.outputs or value in node.inputs:
                self.nodes[index] = Node(
                    node.op,
                    tuple(name if item == value else item for item in node.inputs),
                    tuple(name if item == value else item for item in node.outputs),
                    node.attributes,
                )
        self.shapes[name] = self.shapes.pop(value)
        if value in self.kinds:
            self.kinds[name] = self.kinds.pop(value)
        if value in self.ranges:
            self.ranges[name] = self.ranges.pop(value)
        self.ties = [(name if a == value else a, name if b == value else b) for a, b in self.ties]
        return name

    def node(
        self, op: str, inputs: Sequence[str], shape: Sequence[int], *, kind: Kind = "uint16", known: Range | None = None,
        **attributes: Any,
    ) -> str:  # fmt: skip
        """Append an operator with one output of a given shape."""
        return self.nodes_out(op, inputs, [shape], kind=kind, known=known, **attributes)[0]

    def nodes_out(
        self, op: str, inputs: Sequence[str], shapes: Sequence[Sequence[int]], *, kind: Kind = "uint16",
        known: Range | None = None, **attributes: Any,
    ) -> list[str]:  # fmt: skip
        """Append an operator with several outputs."""
        names = [self.fresh(op) for _ in shapes]
        for name, shape in zip(names, shapes, strict=True):
            self.shapes[name] = tuple(shape)
            if kind != "uint16":
                self.kinds[name] = kind
            if known is not None:
                self.ranges[name] = known
        self.nodes.append(Node(op, tuple(inputs), tuple(names), attributes))
        return names

    def vector(self, name: str, values: NDArray[np.float32]) -> str:
        """A float parameter; the graph holds it once."""
        self.vectors.setdefault(name, np.ascontiguousarray(values, dtype=np.float32))
        self.shapes[name] = self.vectors[name].shape
        return name

    def constant(self, hint: str, values: NDArray[np.float32]) -> str:
        """A float constant of this scope."""
        return self.vector(self.fresh(hint), values)

    def matrix(self, name: str, matrix: Matrix) -> str:
        """The weights of a linear layer."""
        self.matrices[name] = matrix
        self.shapes[name] = matrix.shape
        return name

    def index(self, *values: int) -> str:
        """A constant int64 [len(values)]: a shape, sizes, or bounds."""
        name = "index." + ".".join(map(str, values)).replace("-", "m")
        self.integers[name] = np.array(values, np.int64)
        return name

    def producer(self, value: str) -> Node | None:
        """The node that makes `value`."""
        return next((node for node in reversed(self.nodes) if value in node.outputs), None)

    def groups(self) -> dict[str, str]:
        """Activation, or constant beside activations in a Concat -> the representative of those that share its quantization."""
        parent: dict[str, str] = {}

        def find(item: str) -> str:
            parent.setdefault(item, item)
            while parent[item] != item:
                parent[item] = parent[parent[item]]
                item = parent[item]
            return item

        for node in self.nodes:
            if node.moves:
                first, *others = [*node.data_inputs(), *node.outputs]
                for item in others:
                    parent[find(item)] = find(first)
        for one, other in self.ties:
            parent[find(one)] = find(other)
        for value in self.activations():
            find(value)
        return {value: find(value) for value in list(parent)}

    def activations(self) -> list[str]:
        """Inputs and results of nodes, in order."""
        return [*self.inputs, *(name for node in self.nodes for name in node.outputs)]

    def products(self) -> int:
        """Multiplications of all matrix products in one run."""
        total = 0
        for node in self.nodes:
            if node.op == "MatMul":
                total += math.prod(self.shapes[node.outputs[0]]) * self.shapes[node.inputs[0]][-1]
        return total
