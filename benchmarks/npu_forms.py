"""Why the NPU's graphs have the forms that they have: what the compiler and the emulation say of the alternatives.

    python benchmarks/npu_forms.py

Two tables, in a minute or two. Times are the compiler's estimate for an automotive chip, good for comparing forms alone;
errors are of Qualcomm's emulation against the same graph on ONNX Runtime's CPU.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from pocketvlm.runtime.engines import load_engine
from pocketvlm.toolchain.backends.qnn.compiler import compile_options, run_worker
from pocketvlm.toolchain.backends.qnn.simulated import simulate
from pocketvlm.toolchain.backends.qnn.socs import SOCS
from pocketvlm.toolchain.backends.qnn.static_graph import StaticGraph
from pocketvlm.toolchain.backends.qnn.static_ops import StaticOps
from pocketvlm.toolchain.encoders import ENCODERS
from pocketvlm.toolchain.spec import VisionSpec

SOC = SOCS["SM8750"]
MEMORY = 8 << 30
# SigLIP-SO400M at 384 pixels: 27 x 27 patches.
SIGLIP = VisionSpec("siglip", 1152, 1, 16, 4304, 384, 14, "gelu_pytorch_tanh", 1e-6, (1,))
KINDS: dict[str, Any] = {"uint16": np.uint16, "uint8": np.uint8, "int8": np.int8}


def patches(folder: Path) -> list[str]:
    """Simulated time of one block of the tower at lengths around 729."""
    shapes = ENCODERS.load(SIGLIP.kind).parameters(SIGLIP)
    lines = ["| patches | ms simulated, one block |", "|---:|---:|"]
    for length in (704, 729, 736, 768):
        graph = StaticGraph("block")
        x = graph.input("x", (1, length, SIGLIP.hidden_size))
        with graph.scope("block"):
            x = ENCODERS.load(SIGLIP.kind).block(StaticOps(graph, lambda name: torch.ones(shapes[name])), SIGLIP, x, 0)
        graph.output(x, "y")
        lines.append(f"| {length} | {simulate(graph, SOC, folder / 'patches', MEMORY).microseconds / 1000:.2f} |")
    return lines


def second_factors(folder: Path) -> list[str]:
    """A product of two activations, by the kind of the second."""
    random = np.random.default_rng(0)
    a, b = (random.normal(size=shape).astype(np.float32) for shape in ((2, 256, 48), (2, 48, 1152)))
    lines = ["| second factor | relative error |", "|---|---:|"]
    lines += [f"| {kind} | {product_error(folder / 'product', a, b, kind):.6f} |" for kind in KINDS]
    return lines


def product_error(folder: Path, a: NDArray[np.float32], b: NDArray[np.float32], kind: str) -> float:
    """Root mean square of the difference between emulation and CPU, relative to the product's standard deviation.

    The graph takes and gives codes: floats would go in and out through float16.
    """
    folder.mkdir(exist_ok=True)
    nodes, constants, inputs, floats = [], [], {}, []
    for name, values, dtype in (("a", a, "uint16"), ("b", b, kind), ("y", a @ b, "uint16")):
        bounds = np.iinfo(KINDS[dtype])
        scale = np.abs(values).max() / 127 if dtype == "int8" else (values.max() - values.min()) / bounds.max
        zero = 0 if dtype == "int8" else round(float(-values.min() / scale))
        constants.append(onnx.numpy_helper.from_array(np.array(scale, np.float32), f"{name}.scale"))
        constants.append(onnx.numpy_helper.from_array(np.array(zero, KINDS[dtype]), f"{name}.zero"))
        labels = [f"{name}.scale", f"{name}.zero"]
        if name == "y":
            nodes.append(onnx.helper.make_node("MatMul", floats, ["y.float"]))
            nodes.append(onnx.helper.make_node("QuantizeLinear", ["y.float", *labels], ["y"]))
            break
        inputs[name] = np.clip(np.rint(values / scale) + zero, bounds.min, bounds.max).astype(KINDS[dtype])
        floats.append(f"{name}.float")
        nodes.append(onnx.helper.make_node("DequantizeLinear", [name, *labels], floats[-1:]))

    def info(name: str, dtype: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    declared = [info("a", "uint16", a.shape), info("b", kind, b.shape)]
    graph = onnx.helper.make_graph(nodes, "product", declared, [info("y", "uint16", (a @ b).shape)], constants)
    path = folder / "product.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), path)
    session = load_engine("onnxruntime").open(path, {"graph_optimization": "disabled"}, 1)
    expected = session.run(inputs)["y"].astype(np.float64)
    session.close()
    np.savez(folder / "in.npz", **inputs)
    job = {
        "work": "emulate", "graph": str(path), "inputs": str(folder / "in.npz"), "outputs": str(folder / "out.npz"),
        "options": compile_options(SOC, None),
    }  # fmt: skip
    run_worker(folder, job, "product", MEMORY)
    with np.load(folder / "out.npz", allow_pickle=False) as arrays:
        got = arrays["y"].astype(np.float64)
    return float(np.sqrt(((got - expected) ** 2).mean() / expected.var()))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as place:
        for table in (patches, second_factors):
            print("\n".join(table(Path(place))), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
