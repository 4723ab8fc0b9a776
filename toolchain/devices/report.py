"""What `pocketvlm bench` is asked for, and what it and `pocketvlm doctor` find, whatever the device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketvlm.toolchain.backends.checks import Check

# Name of a figure -> median, and the sample standard deviation of more than one run.
Figures = dict[str, dict[str, float | None]]

TEXT, COLD, ENCODED = "text", "image cold", "image encoded"
MEASURED = (
    "load_ms",
    "vision_ms",
    "tiles",
    "image_tokens",
    "prompt_tokens",
    "new_tokens",
    "ttft_ms",
    "prefill_tok_s",
    "decode_tok_s",
    "overhead_ms_per_token",
    "peak_rss_mb",
)
EXCLUDED = "load_ms and one run that warms up are not part of the other figures"
EMULATED = "emulated on this computer: says nothing about a phone"


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for.

    Attributes:
        image: name of the picture's file.
    """

    prompt_tokens: int
    new_tokens: int
    repetitions: int
    threads: int | None
    image: str | None


@dataclass(frozen=True, slots=True)
class BenchJob:
    """One measurement.

    Attributes:
        image: None measures text alone.
        target: the variant; None takes the first that runs on the device.
        timeout_s: limit of the whole run on a device; None takes one that grows with the repetitions.
        runner, onnxruntime_android: files for Android; None looks for them.
    """

    bundle: Path
    image: Path | None
    settings: Settings
    target: str | None
    timeout_s: float | None = None
    runner: Path | None = None
    onnxruntime_android: Path | None = None

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of what is measured."""
        return (TEXT,) if self.image is None else (COLD, ENCODED)


@dataclass(frozen=True, slots=True)
class Runtime:
    """Who answered: name ("kotlin") and version of the runtime, version of its ONNX Runtime."""

    name: str
    version: str
    onnxruntime: str


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured. `to_json` is what `pocketvlm bench --json` prints.

    Attributes:
        backend_actual: as the metrics have it.
        stages: the engine of each graph.
        emulated: whether one of them runs on an emulation of its device.
        results: the figures of each case.
        runtime: None where the Python runtime of this computer answered.
        device: facts about the device and, as "name", what to call it; None on this computer.
        remarks: lines for a reader that follow the table; the JSON says the same in other places.
    """

    model: str
    variant: str
    backend_actual: str
    stages: dict[str, str]
    emulated: bool
    settings: Settings
    note: str
    results: dict[str, Figures]
    runtime: Runtime | None = None
    device: dict[str, Any] | None = None
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object; what stands for another device is left out on this computer."""
        found = asdict(self)
        del found["remarks"]
        return {name: value for name, value in found.items() if value is not None or name not in ("runtime", "device")}


@dataclass(frozen=True, slots=True)
class Examined:
    """What doctor says about a device.

    Attributes:
        facts: what it tells about itself, as plain data; empty where it cannot be reached.
        lines: the same for a reader.
        checks: what has to be right for a bundle to be measured there.
    """

    facts: dict[str, Any]
    lines: tuple[tuple[str, str], ...]
    checks: tuple[Check, ...]
