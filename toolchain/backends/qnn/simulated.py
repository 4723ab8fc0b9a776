"""The compiler's own estimate of what a graph takes: a simulation, good for ranking designs and for nothing else.

The compiler simulates some automotive chips only. The one with the nearest architecture stands for a phone's chip; clock,
memory and cooling of the phone are not in the figure.
"""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import EnvironmentFault
from pocketvlm.toolchain.backends.onnx_graph import TensorFile
from pocketvlm.toolchain.backends.qnn.compiler import run_worker
from pocketvlm.toolchain.backends.qnn.half_graph import write_half
from pocketvlm.toolchain.backends.qnn.qdq_graph import write_qdq
from pocketvlm.toolchain.backends.qnn.socs import Soc
from pocketvlm.toolchain.backends.qnn.static_graph import StaticGraph

_TIME = "Simulated (Accelerator exec time us)"
_SPILL = "Intermediate Spill"
_ANY_RANGE = (-8.0, 8.0)


@dataclass(frozen=True, slots=True)
class Simulated:
    """What the compiler says of one graph.

    Attributes:
        microseconds: simulated time of one run.
        spilled_bytes: intermediate values that do not fit the chip's own memory and go to main memory.
    """

    microseconds: int
    spilled_bytes: int


def simulate(
    graph: StaticGraph, soc: Soc, folder: Path, memory_bytes: int, vtcm_mb: int | None = None, *, half: bool = False
) -> Simulated:
    """Estimate one run of `graph`; the ranges of its values do not matter.

    Args:
        folder: scratch folder; it is removed.
        half: with float16 activations instead of 16-bit integers.

    Raises:
        GateError: an operator does not land on the NPU.
        EnvironmentFault: the compiler failed, or tells no time.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / f"{graph.name}.onnx"
    with TensorFile(folder / "graph.data") as tensors:
        if half:
            write_half(graph, path, tensors)
        else:
            write_qdq(graph, dict.fromkeys(graph.activations(), _ANY_RANGE), path, tensors)
    found = simulate_file(path, soc, folder / "run", memory_bytes, vtcm_mb)
    shutil.rmtree(folder)
    return found


def simulate_file(path: Path, soc: Soc, folder: Path, memory_bytes: int, vtcm_mb: int | None = None) -> Simulated:
    """As `simulate`, for a quantized graph that lies in a file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    table = folder / "profile.csv"
    options = {
        "soc_model": str(soc.estimated_as),
        "vtcm_mb": str(vtcm_mb or soc.vtcm_mb),
        "htp_graph_finalization_optimization_mode": "3",
        "profiling_level": "detailed",
        "profiling_file_path": str(table.absolute()),
    }
    run_worker(folder, {"work": "profile", "graph": str(path.absolute()), "options": options}, path.stem, memory_bytes)
    times: dict[str, int] = {}
    with table.open(newline="", encoding="utf-8") as file:
        for row in list(csv.reader(file))[1:]:
            if row[-1] in (_TIME, _SPILL):
                times[row[-1]] = times.get(row[-1], 0) + int(row[2])
    shutil.rmtree(folder)
    if _TIME not in times:
        raise EnvironmentFault(f"{path.stem}: the compiler tells no simulated time", "another version of onnxruntime-qnn may")
    return Simulated(times[_TIME], times.get(_SPILL, 0))
