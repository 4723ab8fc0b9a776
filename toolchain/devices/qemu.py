"""Device kind `qemu-aarch64`: the runtime on aarch64 under QEMU's user-mode emulation. For correctness, never a latency.

Every instruction is translated, and vector instructions one element at a time. So a figure of time from here says nothing
about a phone, not even in proportion, and all that leaves this module carries `NOTE` and `emulated: true`.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pocketvlm
from pocketvlm.errors import EnvironmentFault, PocketVLMError, UsageError
from pocketvlm.toolchain.devices.aarch64_root import (
    cache_folder,
    emulator,
    java_program,
    java_root,
    python_program,
    python_root,
)
from pocketvlm.toolchain.devices.report import BenchJob, BenchReport
from pocketvlm.toolchain.progress import Progress

KIND = "qemu-aarch64"
NOTE = "emulated instruction by instruction: for correctness, never a latency"
# What ONNX Runtime asks a processor for, and what of it each has. Vectors of SVE have the 128 bits of phones; those of SME 512.
CPU_MODELS = {
    "cortex-a76": "cortex-a76",  # dot products
    "cortex-a710": "cortex-a710",  # and products of 8-bit matrices (i8mm), SVE2
    "max": "max,pauth-impdef=on,sve-default-vector-length=16,sme-default-vector-length=64",  # and SME
}
DEFAULT_CPU = "cortex-a710"
DEFAULT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Emulation:
    """An aarch64 processor on this computer.

    Args:
        cpu: one of `CPU_MODELS`.
        cache: where what it needs is kept; `cache_folder()` unless given.

    Raises:
        UsageError: no such processor (on construction).
    """

    cpu: str = DEFAULT_CPU
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.cpu not in CPU_MODELS:
            raise UsageError(f"unknown aarch64 processor {self.cpu!r}", f"there are {', '.join(CPU_MODELS)}")

    def run_python(
        self, arguments: Sequence[str], *, seconds: float = DEFAULT_SECONDS, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run Python with `arguments`, such as ["-m", "pocketvlm", ...] or a script's path; this PocketVLM can be imported.

        Returns:
            Exit code and output. What it writes to stderr comes through at once, too.

        Raises:
            EnvironmentFault: what it takes cannot be prepared, it did not end in time, or the emulator crashed.
        """
        root = python_root(self._cache)
        with tempfile.TemporaryDirectory(prefix="pocketvlm-aarch64-") as scratch:
            # The package alone: beside it may lie packages for this computer's processor.
            (Path(scratch) / "pocketvlm").symlink_to(Path(pocketvlm.__file__).resolve().parent, target_is_directory=True)
            own = {
                "PYTHONPATH": f"{scratch}{os.pathsep}{root.site}",
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONNOUSERSITE": "1",
            }
            program = [str(python_program(root.folder)), "-P", *arguments]
            return self._run(root.folder, program, {**own, **(environment or {})}, seconds)

    def run_java(
        self, classpath: Sequence[Path], main: str, arguments: Sequence[str] = (), *, seconds: float = DEFAULT_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run the class `main`. ONNX Runtime's desktop jar holds the libraries for aarch64.

        Raises:
            EnvironmentFault: see `run_python`.
        """
        root = java_root(self._cache)
        # Emulated threads that compile and collect take turns with the program, so there are few of them.
        options = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-cp", os.pathsep.join(map(str, classpath))]
        return self._run(root.folder, [str(java_program(root.folder)), *options, main, *arguments], {}, seconds)

    def facts(self) -> dict[str, str]:
        """What an object of figures says about the device that gave them."""
        return {"kind": KIND, "cpu": self.cpu, "cpu_options": CPU_MODELS[self.cpu], "qemu": _version(emulator(self._cache))}

    @property
    def _cache(self) -> Path:
        return self.cache or cache_folder()

    def _run(
        self, root: Path, program: Sequence[str], environment: Mapping[str, str], seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of `root`. Paths that the root does not have are this computer's."""
        command = [str(emulator(self._cache)), "-L", str(root), "-cpu", CPU_MODELS[self.cpu], *program]
        passed = {name: os.environ[name] for name in ("HOME", "TMPDIR", "TERM") if name in os.environ}
        passed |= {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **environment}
        try:
            done = subprocess.run(
                command, env=passed, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            raise EnvironmentFault(
                f"{KIND}: not finished within {seconds:.0f} seconds", "emulation is slow: ask for less, or allow more"
            ) from None
        if done.returncode < 0 or done.returncode == 128 + signal.SIGSEGV:
            raise EnvironmentFault(f"{KIND}: the emulation of {self.cpu} crashed (exit code {done.returncode})")
        return done


def bench(address: str | None, job: BenchJob, progress: Progress) -> BenchReport:
    """What `pocketvlm bench` finds on aarch64, labelled as emulated.

    Args:
        address: one of `CPU_MODELS`; None takes `DEFAULT_CPU`.

    Raises:
        UsageError: no such processor, or files for Android.
        PocketVLMError: what the command there failed with.
        EnvironmentFault: see `Emulation.run_python`.
    """
    for option, value in (("--runner", job.runner), ("--onnxruntime-android", job.onnxruntime_android)):
        if value is not None:
            raise UsageError(f"{option} is for Android", f"leave it out with --device {KIND}")
    cpu = address or DEFAULT_CPU
    emulation = Emulation(cpu)
    progress.note(f"warning: {KIND}: {NOTE}; this takes many minutes")
    settings = job.settings
    options = {
        "--prompt-tokens": settings.prompt_tokens,
        "--new-tokens": settings.new_tokens,
        "--repetitions": settings.repetitions,
        "--threads": settings.threads,
        "--image": None if job.image is None else job.image.absolute(),
        "--target": job.target,
    }
    given = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    command = ["-m", "pocketvlm", "bench", str(job.bundle.absolute()), "--json", *given]
    found = _object(emulation.run_python(command, seconds=job.timeout_s or DEFAULT_SECONDS))
    return BenchReport(
        model=found["model"],
        variant=found["variant"],
        backend_actual=f"{found['backend_actual']}, emulated {cpu}",
        stages={stage: f"{engine}, emulated {cpu}" for stage, engine in found["stages"].items()},
        emulated=True,
        settings=settings,
        note=f"{NOTE}; {found['note']}",
        results=found["results"],
        device={"name": f"an emulated {cpu}", **emulation.facts()},
    )


def _object(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object that a command printed, or the error that it told."""
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise EnvironmentFault(f"{KIND}: the command ended with exit code {done.returncode} and no result") from None
    if done.returncode == 0:
        return found
    told = found.get("error", {})
    kind = _kinds().get(str(told.get("code")), EnvironmentFault)
    raise kind(f"{KIND}: {told.get('message', f'exit code {done.returncode}')}", str(told.get("hint", "")))


@functools.cache
def _kinds() -> dict[str, type[PocketVLMError]]:
    """The errors by their codes; the general one of each."""
    found: dict[str, type[PocketVLMError]] = {}
    waiting: list[type[PocketVLMError]] = [PocketVLMError]
    for kind in waiting:
        found.setdefault(kind.code, kind)
        waiting += kind.__subclasses__()
    return found


@functools.cache
def _version(program: Path) -> str:
    """QEMU's version, "10.0.13"."""
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False, timeout=60)
    version = re.search(r"version (\S+)", done.stdout)
    return version[1] if version else "unknown"
