"""Which kernels ONNX Runtime runs for a stage, read from its own profiler."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pocketvlm.runtime.manifest import KvCacheSpec, StageSpec, TensorSpec

_CHUNK = 4
_CAPACITY = 8


def kernels_of(folder: Path, prefix: str, name: str, stage: StageSpec, cache: KvCacheSpec) -> StageSpec:
    """`stage` with `kernels` filled in: kernel name -> how often it runs in one call.

    The stage runs once on zeros of the smallest size: `prefill` on a short chunk, `decode` on one token.
    """
    path = folder / stage.file.removeprefix(f"{prefix}/")
    sizes = {"batch": 1, "length": 1 if name == "decode" else _CHUNK, "capacity": min(_CAPACITY, cache.capacity)}
    with tempfile.TemporaryDirectory(prefix="pocketvlm-profile-") as scratch:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "trace")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run(None, {tensor.name: _zeros(tensor, sizes) for tensor in stage.inputs})
        trace = json.loads(Path(session.end_profiling()).read_text())
    counts = Counter(event["args"]["op_name"] for event in kernel_events(trace))
    return replace(stage, kernels=dict(sorted(counts.items())))


def _zeros(tensor: TensorSpec, sizes: dict[str, int]) -> NDArray[Any]:
    shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
    return np.zeros(shape, tensor.dtype)


def kernel_events(trace: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of ONNX Runtime's profile that are runs of kernels: `dur` in microseconds, `args` with `op_name`."""
    return [event for event in trace if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time")]
