"""Compiles quantized graphs to context binaries, each part in a process of its own, and keeps what is done.

A part's result is stored under the hash of everything that it depends on. An export that was interrupted finds the parts that
were finished; one whose weights have changed does not.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pocketvlm.errors import EnvironmentFault, GateError
from pocketvlm.runtime.engines.qnn_provider import PACKAGE
from pocketvlm.toolchain.backends.qnn.socs import SOCS, Soc
from pocketvlm.toolchain.disk import full_error, is_nearly_full
from pocketvlm.toolchain.kept import COMPILED

_SOURCES = "sources"
_POLL_SECONDS = 0.2
# The compiler's highest level.
_OPTIMIZATION = "3"
_UNSUPPORTED = re.compile(r"\{ name: ([^,{}]+), type: ([^,{}]+) \}")
_MEMORY_SHORT = re.compile(r"bad_?alloc|MemoryError|out of memory|cannot allocate memory|failed to allocate", re.IGNORECASE)
# Greetings, which are no reason for anything.
_GREETING = "# LIBNATIVE:"
_WORKER = "pocketvlm.toolchain.backends.qnn.compile_worker"
# Raised when this module or what it asks of the compiler changes: older results are then no longer taken.
_FORMAT = 2


@dataclass(frozen=True, slots=True)
class Compiled:
    """One part's binaries.

    Attributes:
        contexts: for every graph the small model that stands for it.
        binary: what they refer to.
        seconds: how long it took to compile, also when it was done by an earlier export.
        peak_bytes: largest resident memory of the compiler.
    """

    contexts: tuple[Path, ...]
    binary: Path
    seconds: float
    peak_bytes: int


def provider_options(soc: Soc, vtcm_mb: int | None) -> dict[str, str]:
    """What the provider must be told about a chip. Left to itself it takes an old one for granted."""
    return {"soc_model": str(soc.model), "htp_arch": str(soc.architecture), "vtcm_mb": str(vtcm_mb or soc.vtcm_mb)}


def compile_options(soc: Soc, vtcm_mb: int | None) -> dict[str, str]:
    """What the compiler is told, also when it compiles for the emulation."""
    return {**provider_options(soc, vtcm_mb), "htp_graph_finalization_optimization_mode": _OPTIMIZATION}


class Compiler:
    """Compiles for one chip.

    Args:
        options: of `compile_options`.
        store: folder of finished parts; made when needed.
        memory_bytes: the compiler is stopped when it takes more.
    """

    def __init__(self, options: dict[str, str], store: Path, memory_bytes: int) -> None:
        self._options, self._store, self._memory = options, store, memory_bytes

    def compile(self, name: str, graphs: Sequence[Path], data: Sequence[Path]) -> Compiled:
        """Compile the graphs of one part, or take what an earlier export has compiled.

        Args:
            name: what the part is called in messages.
            graphs: quantized models that share weights.
            data: their external data.

        Raises:
            GateError: an operator does not land on the NPU.
            EnvironmentFault: the compiler failed, or took more memory than it may.
            OSError: the disk is full.
        """
        folder = self._folder(graphs, data)
        found = _finished(folder)
        if found is not None:
            return found
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / _SOURCES).mkdir(parents=True)
        for source in (*graphs, *data):
            place(source, partial / _SOURCES / source.name)
        contexts = [partial / f"{graph.stem}.onnx" for graph in graphs]
        # Paths relative to the process's folder: they become part of the binaries, whose bytes should not depend on them.
        job = {
            "work": "compile",
            "graphs": [f"{_SOURCES}/{graph.name}" for graph in graphs],
            "contexts": [context.name for context in contexts],
            "options": self._options,
        }
        result, peak = run_worker(partial, job, name, self._memory)
        shutil.rmtree(partial / _SOURCES)
        binaries = sorted(partial.glob("*.bin"))
        if len(binaries) != 1 or not all(context.is_file() for context in contexts):
            raise EnvironmentFault(f"{name}: the compiler wrote {len(binaries)} binaries instead of one", "try it again")
        made = {
            "contexts": [context.name for context in contexts],
            "binary": binaries[0].name,
            "sha256": _sha256(binaries[0]),
            "seconds": result["seconds"],
            "peak_bytes": peak,
        }
        (partial / COMPILED).write_text(json.dumps(made), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        finished = _finished(folder)
        assert finished is not None
        return finished

    def has(self, graphs: Sequence[Path], data: Sequence[Path]) -> bool:
        """Whether an earlier export has compiled them."""
        return _finished(self._folder(graphs, data)) is not None

    def _folder(self, graphs: Sequence[Path], data: Sequence[Path]) -> Path:
        digest = hashlib.sha256()
        versions = [importlib.metadata.version(package) for package in ("onnxruntime", PACKAGE)]
        digest.update(json.dumps([_FORMAT, *versions, self._options]).encode())
        for path in (*graphs, *data):
            digest.update(_sha256(path).encode())
        return self._store / digest.hexdigest()[:32]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def place(source: Path, target: Path) -> None:
    """Give a finished file a second place: by another name for it if that is possible, else by a copy."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _finished(folder: Path) -> Compiled | None:
    try:
        made = json.loads((folder / COMPILED).read_text(encoding="utf-8"))
        contexts = tuple(folder / name for name in made["contexts"])
        binary = folder / made["binary"]
        if _sha256(binary) != made["sha256"] or not all(context.is_file() for context in contexts):
            return None
        return Compiled(contexts, binary, made["seconds"], made["peak_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def run_worker(folder: Path, job: dict[str, Any], name: str, memory_bytes: int) -> tuple[dict[str, Any], int]:
    """Run one job in a child process, in `folder`; returns its result and its largest resident memory.

    Raises:
        GateError: an operator does not land on the NPU.
        EnvironmentFault: it failed, or took more than `memory_bytes`.
        OSError: the disk is full, whether here or there.
    """
    path, log, scratch = folder / "job.json", folder / "log.txt", folder / "scratch"
    path.write_text(json.dumps(job), encoding="utf-8")
    # Qualcomm's libraries leave a log there.
    scratch.mkdir(exist_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    with log.open("wb") as output:
        command = [sys.executable, "-P", "-m", _WORKER, path.name]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch.absolute())}
        child = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            peak = _watch(child, name, memory_bytes)
        except BaseException:
            child.kill()
            child.wait()
            raise
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise _failure(name, log, child.returncode, job.get("options", {})) from None
    shutil.rmtree(scratch)
    log.unlink()
    path.unlink()
    (folder / "result.json").unlink()
    return result, peak


def _watch(child: subprocess.Popen[bytes], name: str, memory_bytes: int) -> int:
    peak = 0
    process = psutil.Process(child.pid)
    while child.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        if peak > memory_bytes:
            raise EnvironmentFault(
                f"{name}: the compiler takes more than the {memory_bytes / 1e9:.1f} GB that the recipe allows",
                "set qnn.layers_per_part lower, or qnn.memory_gb higher",
            )
        time.sleep(_POLL_SECONDS)
    child.wait()
    return peak


def _failure(name: str, log: Path, code: int, options: dict[str, str]) -> GateError | EnvironmentFault | OSError:
    """What the child's words mean."""
    words = log.read_text(encoding="utf-8", errors="replace")
    full = full_error(words)
    # A process that finds the disk full cannot say so in a file.
    if full is not None or is_nearly_full(log.parent):
        number = full or errno.ENOSPC
        return OSError(number, os.strerror(number), str(log.parent))
    # Partitions of what can run there are listed, too.
    refused = [found for found in dict.fromkeys(_UNSUPPORTED.findall(words)) if not found[1].startswith("QNNExecutionProvider")]
    if refused:
        shown = ", ".join(f"{kind} {node.removesuffix('_node').removesuffix('.value')!r}" for node, kind in refused[:5])
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        return GateError(
            f"{name}: {shown}{more} cannot run on the NPU",
            "export for ort-cpu, keep this stage on the CPU (qnn.stages), or report the model",
        )
    lines = [line.strip() for line in words.splitlines() if line.strip() and _GREETING not in line]
    told = lines[-1][:300] if lines else "it said nothing"
    ended = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return EnvironmentFault(f"{name}: the compiler failed ({ended}): {told}", _advice(words, log, code, options))


def _advice(words: str, log: Path, code: int, options: dict[str, str]) -> str:
    """What may help. Of memory that has run out, often nothing is seen but a signal."""
    memory = "set qnn.layers_per_part lower, or close other programs"
    if code == -signal.SIGKILL or _MEMORY_SHORT.search(words):
        return memory
    soc = next((soc.name for soc in SOCS.values() if str(soc.model) == options.get("soc_model")), "SOC")
    probe = f"`pocketvlm doctor --target qnn:{soc}` tells whether the compiler works here"
    return f"{probe}; if it does, {memory}" if code < 0 else f"{probe}; all that it said is in {log}"
