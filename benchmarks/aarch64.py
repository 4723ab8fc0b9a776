"""What ONNX Runtime's kernels on ARM do to the numbers: faithful ones and Arm's own, beside x86 and float32.

    python benchmarks/aarch64.py
    python benchmarks/aarch64.py FP32_BUNDLE BUNDLE [BUNDLE ...] --tokens 128

The first measures single operators, the second the logits of whole decoders, over English text (Python's language reference):
half of the tokens are prefilled, the logits after each of the others are compared. Everything runs under QEMU's user-mode
emulation, so only numbers are measured, no speed. The yardstick is another x86 processor, with older kernels.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.tokenizer import Tokenizer
from pocketvlm.toolchain.backends.onnx_graph import IR_VERSION
from pocketvlm.toolchain.devices.aarch64_root import cache_folder, emulator
from pocketvlm.toolchain.devices.qemu import CPU_MODELS, Emulation
from pocketvlm.toolchain.quantize.calibration_text import held_out_text

Array = NDArray[Any]
WORKER = Path(__file__).resolve().parent / "aarch64_worker.py"
KERNELS = ("faithful", "fastest")
# This computer's processor, and one of the same family with older kernels (AVX2): how far apart these are is the measure.
HERE, OTHER_X86 = "x86", "EPYC-Milan"
INPUTS, OUTPUTS, BLOCK, SIDE = 576, 192, 32, 24
ROWS = {"one row": 1, "40 rows": 40}


def run(job: dict[str, Any], cpu: str, seconds: float) -> dict[str, Array]:
    """What the worker finds on an emulated processor, or on this one."""
    with tempfile.TemporaryDirectory(prefix="pocketvlm-aarch64-") as name:
        out, file = Path(name) / "out.npz", Path(name) / "job.json"
        file.write_text(json.dumps({**job, "out": str(out)}), encoding="utf-8")
        if cpu in (HERE, OTHER_X86):
            emulated = [str(emulator(cache_folder(), "x86_64")), "-cpu", cpu] if cpu == OTHER_X86 else []
            subprocess.run([*emulated, sys.executable, str(WORKER), str(file)], check=True, timeout=seconds)
        elif code := Emulation(cpu).run_python([str(WORKER), str(file)], seconds=seconds).returncode:
            raise SystemExit(f"error: the worker on {cpu} ended with exit code {code}")
        with np.load(out) as found:
            return dict(found)


def matmul_nbits(bits: int, symmetric: bool, block: int, weights: Array) -> tuple[onnx.NodeProto, dict[str, Array], Array]:
    """A product with `weights` [N, K] in blocks, its tensors, and the weights that it means, in float64."""
    rows, columns = weights.shape
    blocks = weights.reshape(rows, columns // block, block)
    top = 2**bits - 1
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    if symmetric:
        scale, zero = np.abs(blocks).max(-1) / (top // 2), np.full(low.shape, top // 2 + 1)
    else:
        scale = (high - low) / top
        zero = np.round(-low / scale)
    scale = scale.astype(np.float32)
    codes = np.clip(np.round(blocks / scale[..., None]) + zero[..., None], 0, top).astype(np.uint8)
    meant = (codes - zero[..., None].astype(np.float64)) * scale[..., None].astype(np.float64)
    packed, zeros = codes, zero.astype(np.uint8)
    if bits == 4:
        packed = codes[..., 0::2] | codes[..., 1::2] << 4
        padded = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
        zeros = padded[:, 0::2] | padded[:, 1::2] << 4
    tensors = {"q": packed, "s": scale} | ({} if symmetric else {"z": zeros})
    node = helper.make_node(
        "MatMulNBits", ["x", *tensors], ["y"], domain="com.microsoft", K=columns, N=rows, bits=bits, block_size=block,
        accuracy_level=4,
    )  # fmt: skip
    return node, tensors, meant.reshape(rows, columns)


def write_operators(folder: Path) -> dict[str, dict[str, Array]]:
    """Graphs of one operator and their inputs, into `folder`; returns what each would give in float64."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(OUTPUTS, INPUTS)).astype(np.float32)
    inputs = {name: generator.normal(size=(count, INPUTS)).astype(np.float32) for name, count in ROWS.items()}
    found = {}
    forms = {
        "4 bits, zero points, blocks of 32": (4, False, 32), "4 bits, symmetric, blocks of 32": (4, True, 32),
        "4 bits, zero points, blocks of 16": (4, False, 16), "8 bits, zero points, blocks of 32": (8, False, 32),
    }  # fmt: skip
    for name, (bits, symmetric, block) in forms.items():
        node, tensors, meant = matmul_nbits(bits, symmetric, block, weights)
        found[name] = _write(folder, name, node, tensors, inputs, lambda x, meant=meant: x @ meant.T)
    scales = np.abs(weights).max(1) / 127
    codes = np.round(weights / scales[:, None]).astype(np.int8)
    tensors = {"w": codes.T.copy(), "s": scales, "z": np.zeros(OUTPUTS, np.int8)}
    node = helper.make_node("DynamicQuantizeMatMul", ["x", *tensors], ["y"], domain="com.microsoft")
    whole = (codes * scales[:, None].astype(np.float64)).T
    found["DynamicQuantizeMatMul"] = _write(folder, "DynamicQuantizeMatMul", node, tensors, inputs, lambda x: x @ whole)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    found["MatMul, float32"] = _write(
        folder, "MatMul, float32", node, {"w": weights.T.copy()}, inputs, lambda x: x @ weights.T.astype(np.float64)
    )
    filters = generator.normal(size=(64, 3, 8, 8)).astype(np.float32)
    pixels = {"one picture": generator.normal(size=(1, 3, 8 * SIDE, 8 * SIDE)).astype(np.float32)}
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[8, 8])

    def convolved(x: Array) -> Array:
        patches = x.reshape(1, 3, SIDE, 8, SIDE, 8).transpose(0, 2, 4, 1, 3, 5).reshape(1, SIDE, SIDE, 192)
        return (patches @ filters.reshape(64, 192).T.astype(np.float64)).transpose(0, 3, 1, 2)

    found["Conv, float32"] = _write(folder, "Conv, float32", node, {"w": filters}, pixels, convolved)
    return found


def _write(
    folder: Path, name: str, node: onnx.NodeProto, tensors: dict[str, Array], inputs: dict[str, Array], truth: Any
) -> dict[str, Array]:
    rank = next(iter(inputs.values())).ndim
    shapes = [[f"{tensor}{axis}" for axis in range(rank)] for tensor in "xy"]
    if rank == 2:
        shapes[0][1], shapes[1][1] = INPUTS, OUTPUTS  # type: ignore[call-overload]
    ends = [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, shape) for tensor, shape in zip("xy", shapes, strict=True)]
    constants = [numpy_helper.from_array(value, tensor) for tensor, value in tensors.items()]
    graph = helper.make_graph([node], "operator", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), str(folder / f"{name}.onnx"))
    np.savez(folder / f"{name}.npz", **inputs)
    return {case: truth(values.astype(np.float64)) for case, values in inputs.items()}


def relative(got: Array, wanted: Array) -> float:
    """RMS of the difference over RMS of what is wanted."""
    return float(np.linalg.norm(got.astype(np.float64) - wanted) / np.linalg.norm(wanted))


def measure_operators(cpus: list[str], seconds: float) -> list[dict[str, Any]]:
    """One row per operator and input: errors against float64, and distances from x86."""
    with tempfile.TemporaryDirectory(prefix="pocketvlm-operators-") as name:
        truths = write_operators(Path(name))
        runs = {(HERE, ""): run({"operators": name, "options": {}}, HERE, seconds)}
        for cpu in cpus:
            for kernels in KERNELS:
                job = {"operators": name, "options": {"arm_kernels": kernels}}
                runs[cpu, kernels] = run(job, cpu, seconds)
                if runs[cpu, kernels]["saturating"]:
                    raise SystemExit(f"error: products of bytes saturate on {cpu}")
    here = runs[HERE, ""]
    return [
        {
            "operator": operator, "input": case, "processor": cpu, "kernels": kernels,
            "error": relative(found[f"{operator}/{case}"], truth),
            "from_x86": relative(found[f"{operator}/{case}"], here[f"{operator}/{case}"].astype(np.float64)),
        }
        for operator, cases in truths.items() for case, truth in cases.items() for (cpu, kernels), found in runs.items()
    ]  # fmt: skip


def log_softmax(logits: Array) -> Array:
    values = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def compared(reference: Array, logits: Array) -> dict[str, float]:
    """Mean KL in nats, share of equal most likely tokens, and RMS of the difference of centred logits over their RMS."""
    a, b = log_softmax(reference), log_softmax(logits)
    centred = [values - values.mean(-1, keepdims=True) for values in (reference.astype(np.float64), logits.astype(np.float64))]
    return {
        "kl": float((np.exp(a) * (a - b)).sum(-1).mean()),
        "top1": float((a.argmax(-1) == b.argmax(-1)).mean()),
        "rms": relative(centred[1], centred[0]),
    }


def measure_decoders(reference: Path, bundles: list[Path], cpus: list[str], count: int, seconds: float) -> list[dict[str, Any]]:
    """One row per bundle, processor and choice of kernels, against float32 and against the same bundle on x86."""
    ids = Tokenizer.of(Bundle.open(reference, verify=False)).encode(held_out_text(), special=False)[:count]
    task: dict[str, Any] = {"tokens": ids, "prompt": count // 2}
    exact = run({**task, "bundle": str(reference.absolute()), "options": {}}, HERE, seconds)["logits"]
    rows = []
    for bundle in bundles:
        job = {**task, "bundle": str(bundle.absolute())}
        here = run({**job, "options": {}}, HERE, seconds)["logits"]
        runs = {(HERE, ""): here}
        for cpu in cpus:
            for kernels in KERNELS if cpu in CPU_MODELS else ("",):
                options = {"arm_kernels": kernels} if kernels else {}
                runs[cpu, kernels] = found = run({**job, "options": options}, cpu, seconds)["logits"]
                told = json.dumps({"to_float32": compared(exact, found), "to_x86": compared(here, found)})
                print(f"{bundle.name}, {cpu} {kernels}: {told}", file=sys.stderr, flush=True)
        rows += [
            {"bundle": bundle.name, "processor": cpu, "kernels": kernels, "positions": len(found),
             "to_float32": compared(exact, found), "to_x86": compared(here, found)}
            for (cpu, kernels), found in runs.items()
        ]  # fmt: skip
    return rows


def print_operators(rows: list[dict[str, Any]]) -> None:
    print(
        "| operator | input | processor | kernels | RMS error to float64 | RMS distance from x86 |\n|---|---|---|---|---:|---:|"
    )
    for row in rows:
        print("| {operator} | {input} | {processor} | {kernels} | {error:.1e} | {from_x86:.1e} |".format(**row))


def print_decoders(rows: list[dict[str, Any]]) -> None:
    print("| bundle | processor | kernels | KL to float32 | top-1 | RMS | KL to x86 | top-1 | RMS |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        figures = [f"{row[side][name]:{form}}" for side in ("to_float32", "to_x86") for name, form in FORMS.items()]
        print(f"| {row['bundle']} | {row['processor']} | {row['kernels']} | {' | '.join(figures)} |")
    print(f"\n{rows[0]['positions']} positions each")


FORMS = {"kl": ".5f", "top1": ".1%", "rms": ".2%"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*", help="the float32 bundle, then others of the same checkpoint")
    parser.add_argument("--cpu", action="append", choices=[*CPU_MODELS, OTHER_X86], help="only these processors")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=60, help="limit of one run")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cpus, seconds = arguments.cpu or [*CPU_MODELS, OTHER_X86], arguments.minutes * 60
    if len(arguments.bundles) == 1 or arguments.tokens < 4 or not math.isfinite(seconds):
        parser.error("give a float32 bundle and at least one other, and at least 4 tokens")
    if not arguments.bundles:
        rows = measure_operators([cpu for cpu in cpus if cpu in CPU_MODELS], seconds)
    else:
        rows = measure_decoders(arguments.bundles[0], arguments.bundles[1:], cpus, arguments.tokens, seconds)
    if arguments.json:
        print(json.dumps(rows))
    elif arguments.bundles:
        print_decoders(rows)
    else:
        print_operators(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
