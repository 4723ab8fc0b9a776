"""The child process that compiles graphs, or runs them on the emulation: `python -m ... JOB.json`.

A process of its own, because the compiler gives its memory back only when it ends, and ends the process when it crashes.
The job says what to do; `result.json` beside it says what came out. Errors go to stderr as ONNX Runtime writes them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from pocketvlm.runtime.engines.qnn_provider import npu_session

_ERRORS = 3


def _session(graph: str, options: dict[str, str], entries: dict[str, str]) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = _ERRORS
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    return npu_session(graph, settings, options)


def compile_graphs(graphs: list[str], contexts: list[str], options: dict[str, str]) -> dict[str, Any]:
    """Compile graphs whose weights stand in one binary; returns the seconds that it took."""
    start = time.perf_counter()
    opened = []
    for number, (graph, context) in enumerate(zip(graphs, contexts, strict=True)):
        entries = {"ep.context_enable": "1", "ep.context_file_path": context, "ep.context_embed_mode": "0"}
        if len(graphs) > 1:
            entries["ep.share_ep_contexts"] = "1"
            if number == len(graphs) - 1:
                entries["ep.stop_share_ep_contexts"] = "1"
        opened.append(_session(graph, options, entries))
    return {"seconds": time.perf_counter() - start}


def profile(graph: str, options: dict[str, str]) -> dict[str, Any]:
    """Compile a graph for a chip whose times the compiler simulates; the options name the file that they go to."""
    start = time.perf_counter()
    _session(graph, options, {})
    return {"seconds": time.perf_counter() - start}


def emulate(graph: str, inputs: str, outputs: str, options: dict[str, str]) -> dict[str, Any]:
    """Run a graph once on arrays of `inputs` (.npz) and write what it gives to `outputs`."""
    start = time.perf_counter()
    session = _session(graph, options, {})
    compiled = time.perf_counter()
    names = [output.name for output in session.get_outputs()]
    with np.load(inputs, allow_pickle=False) as arrays:
        values = session.run(names, {name: arrays[name] for name in arrays.files})
    np.savez(outputs, **dict(zip(names, values, strict=True)))
    return {"seconds": time.perf_counter() - compiled, "compile_seconds": compiled - start}


def main() -> None:
    """Do one job."""
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    works: dict[str, Callable[..., dict[str, Any]]] = {"compile": compile_graphs, "profile": profile, "emulate": emulate}
    result = works[job.pop("work")](**job)
    (path.parent / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
