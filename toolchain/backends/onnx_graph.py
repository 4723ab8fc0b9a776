"""Writes an ONNX graph node by node; weights go straight to an external data file, one at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pocketvlm.runtime.manifest import TensorSpec

OPSET = 24
IR_VERSION = 11
MICROSOFT = "com.microsoft"
_ALIGNMENT = 4096
_INLINE_BYTES = 1024
DTYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


def stored_bytes(size: float) -> int:
    """Room that a tensor of so many bytes takes in a `TensorFile`, up to where the next one may begin."""
    return math.ceil(size / _ALIGNMENT) * _ALIGNMENT if size > _INLINE_BYTES else 0


class TensorFile:
    """An external data file that several graphs may share. Offsets are page-aligned, so that readers can map it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._known: dict[str, TensorProto] = {}

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def known(self, name: str) -> TensorProto | None:
        """The tensor of that name, if it was written before."""
        return self._known.get(name)

    def write(self, name: str, array: NDArray[Any], like: TensorProto | None = None) -> TensorProto:
        """Append `array` and return the initializer that refers to it.

        Args:
            like: type and dimensions, where they are not the array's: of packed bytes.
        """
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.write(b"\0" * (offset - self._file.tell()))
        np.ascontiguousarray(array).tofile(self._file)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype) if like is None else like.data_type
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape if like is None else like.dims)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.path.name), ("offset", str(offset)), ("length", str(array.nbytes))):
            tensor.external_data.add(key=key, value=value)
        self._known[name] = tensor
        return tensor


class GraphWriter:
    """Collects nodes; values are names. Node names are numbered, so the same calls give the same file."""

    def __init__(self, name: str, tensors: TensorFile) -> None:
        self.name = name
        self.tensors = tensors
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def input(self, spec: TensorSpec) -> str:
        """Declare an input of the graph; its name is the value."""
        self._inputs.append(helper.make_tensor_value_info(spec.name, DTYPES[spec.dtype], list(spec.shape)))
        return spec.name

    def output(self, spec: TensorSpec) -> None:
        """Declare an output of the graph; `rename_output` or a node must make it."""
        self._outputs.append(helper.make_tensor_value_info(spec.name, DTYPES[spec.dtype], list(spec.shape)))

    def fresh(self, hint: str) -> str:
        """A value name that nothing else has."""
        self._count += 1
        return f"{hint}_{self._count}"

    def node(self, op: str, inputs: Sequence[str], *, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        return self.nodes(op, inputs, 1, domain=domain, **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[str], outputs: int | Sequence[str], *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Append a node with several outputs (a number of fresh ones, or given names)."""
        names = [self.fresh(op) for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self._nodes.append(helper.make_node(op, list(inputs), names, name=f"{names[0]}_node", domain=domain, **attributes))
        return names

    def rename_output(self, value: str, name: str) -> None:
        """Give a computed value the name of a graph output."""
        self.nodes("Identity", [value], [name])

    def constant(self, array: NDArray[Any]) -> str:
        """A small constant, stored in the graph once."""
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._initializers[name] = numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """A constant int64 [len(values)]."""
        return self.constant(np.array(values, np.int64))

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """A parameter: in the external file, once for all its graphs, or in the graph when it is small."""
        if self.shared_weight(name) is not None:
            if list(self._initializers[name].dims) != list(array.shape):
                raise ValueError(f"parameter {name!r} was written with another shape")
        else:
            small = array.nbytes <= _INLINE_BYTES
            self._initializers[name] = numpy_helper.from_array(array, name) if small else self.tensors.write(name, array)
        return name

    def shared_weight(self, name: str) -> str | None:
        """A parameter that another graph of the same external file has written, or this one."""
        known = self.tensors.known(name)
        if name not in self._initializers and known is not None:
            self._initializers[name] = known
        return name if name in self._initializers else None

    def packed_weight(self, name: str, packed: NDArray[np.uint8], kind: int, shape: Sequence[int]) -> str:
        """A parameter of less than a byte an element: its packed bytes, ONNX type and shape."""
        if self.shared_weight(name) is None:
            like = TensorProto(data_type=kind, dims=shape)
            self._initializers[name] = self.tensors.write(name, packed, like)
        return name

    def reshaped_weight(self, name: str, shape: tuple[int, ...]) -> str:
        """The same bytes as the parameter `name`, with other dimensions.

        A Reshape node would do as well, but the engine folds it into a copy in memory.
        """
        alias = f"{name}.{'x'.join(map(str, shape))}"
        tensor = TensorProto()
        tensor.CopyFrom(self._initializers[name])
        tensor.name = alias
        del tensor.dims[:]
        tensor.dims.extend(shape)
        self._initializers[alias] = tensor
        self._initializers.pop(name)
        return alias

    def subgraph(self) -> Subgraph:
        """A body for an `If`; its nodes see all values of this graph."""
        return Subgraph(self)

    @property
    def uses_external_data(self) -> bool:
        """Whether any parameter lies in the external file."""
        return any(tensor.data_location == TensorProto.EXTERNAL for tensor in self._initializers.values())

    def save(self, path: Path, opset: int = OPSET) -> None:
        """Write the model; the same calls always give the same bytes."""
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, list(self._initializers.values()))
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pocketvlm")
        path.write_bytes(model.SerializeToString(deterministic=True))

    def collect(self) -> list[onnx.NodeProto]:
        """Take the nodes written so far and start an empty list (for subgraphs)."""
        nodes, self._nodes = self._nodes, []
        return nodes


class Subgraph:
    """Context manager: the nodes written inside become the body of a branch."""

    def __init__(self, writer: GraphWriter) -> None:
        self._writer = writer
        self._outer: list[onnx.NodeProto] = []
        self.nodes: list[onnx.NodeProto] = []

    def __enter__(self) -> Subgraph:
        self._outer = self._writer.collect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.nodes = self._writer.collect()
        self._writer._nodes = self._outer

    def body(self, name: str, outputs: Sequence[tuple[str, int]]) -> onnx.GraphProto:
        """The branch with its outputs as (value name, element type)."""
        infos = [helper.make_tensor_value_info(value, kind, None) for value, kind in outputs]
        return helper.make_graph(self.nodes, name, [], infos)
