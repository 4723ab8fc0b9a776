"""What one answer cost."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

StopReason = Literal["stop_token", "stop_string", "max_new_tokens", "context_full", "cancelled"]

_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures of one answer; times in milliseconds, memory in MiB.

    Attributes:
        load_ms: opening the bundle: checking, loading graphs and tokenizer.
        vision_ms: sum over the images of the time from picking the image up to its visual tokens; 0 for images whose
            tokens came from the image cache, or that an earlier answer has counted.
        tiles: tiles of all images, thumbnails included.
        image_tokens: visual tokens of all images.
        image_was_cached: the images' tokens were at hand when the question came (False without images).
        prompt_tokens: positions of the prompt, visual tokens included.
        kv_prefix_reused: how many of them were in the KV cache already.
        new_tokens: tokens of the answer, without the stop token.
        ttft_ms: from the request to the first text, images and prefill included.
        prefill_tok_s: prompt tokens computed, per second.
        decode_tok_s: decoder steps per second, sampling and text included, the reader's time not; 0 without a step.
        overhead_ms_per_token: of a decoder step's time, the part outside the engine: sampling, text, bookkeeping.
        peak_rss_mb: largest resident memory of the process so far; None where the system does not tell.
        rss_before_release_mb, rss_after_release_mb: resident memory around the latest release of the vision stages;
            None when there was none.
        backend_requested: the target that was asked for; None means the first that runs here.
        backend_actual: the variant's target and engine.
    """

    load_ms: float
    vision_ms: float
    tiles: int
    image_tokens: int
    image_was_cached: bool
    prompt_tokens: int
    kv_prefix_reused: int
    new_tokens: int
    ttft_ms: float
    prefill_tok_s: float
    decode_tok_s: float
    overhead_ms_per_token: float
    peak_rss_mb: float | None
    rss_before_release_mb: float | None
    rss_after_release_mb: float | None
    stop_reason: StopReason
    backend_requested: str | None
    backend_actual: str


@dataclass(frozen=True, slots=True)
class SessionFigures:
    """The part of `Metrics` that is the session's, not the answer's."""

    load_ms: float
    rss_before_release_mb: float | None
    rss_after_release_mb: float | None
    backend_requested: str | None
    backend_actual: str


def resident_mb() -> float | None:
    """Resident memory of this process now, in MiB; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / _MEBIBYTE


def peak_resident_mb() -> float | None:
    """Largest resident memory of this process so far, in MiB; None where the system does not tell."""
    try:
        # Not ru_maxrss on Linux: a process inherits that from the one that started it.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MEBIBYTE


def available_share() -> float | None:
    """Share (0 to 1) of the machine's memory that programs could still get; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Mem")}
    if not sizes.get("MemTotal") or "MemAvailable" not in sizes:
        return None
    return sizes["MemAvailable"] / sizes["MemTotal"]
