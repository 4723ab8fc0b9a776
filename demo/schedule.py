"""Draws which stage of which batch ran when, from a trace: the overlap of patch embedding and vision blocks is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

STAGES = {
    "open image": ("open", "#9d9d9d"),
    "cut tiles": ("cut tiles", "#bab0ab"),
    "patch_embed": ("patch embedding", "#4c78a8"),
    "vision_encoder": ("vision blocks", "#f58518"),
    "connector": ("connector", "#e45756"),
    "prefill": ("prefill chunk", "#54a24b"),
    "decode": ("decode", "#b279a2"),
}


def draw_schedule(trace: dict[str, Any], path: Path) -> None:
    """Draw the first answer about the image with the most batches and the most overlap.

    Args:
        trace: Chrome trace JSON as the runtime writes it.
        path: PNG file to write.

    Raises:
        ValueError: the trace holds no encoded image.
    """
    events = sorted((item for item in trace["traceEvents"] if item.get("name") in STAGES), key=lambda item: item["ts"])
    window = _busiest(events)
    start = window[0]["ts"]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(12, 6.4), height_ratios=[5, 3])
    end_of_vision = max(item["ts"] + item["dur"] for item in window if item["name"] in ("vision_encoder", "connector"))
    vision = [item for item in window if item["ts"] < end_of_vision]
    _lanes(top, vision, start, ["open image", "cut tiles", "patch_embed", "vision_encoder", "connector"])
    tiles = sum(item["args"].get("tiles", 0) for item in vision if item["name"] == "patch_embed")
    hidden = overlap_ms(vision)
    whole = (end_of_vision - start) / 1000
    top.set_title(
        f"image encoding: {tiles} tiles in {whole:.0f} ms; {hidden:.1f} ms of patch embedding behind vision blocks "
        "(the image with the most overlap)"
    )
    top.set_xlabel("ms since the image was picked up; numbers are batches")
    _lanes(bottom, window, start, ["vision_encoder", "prefill", "decode"])
    bottom.set_title("the whole answer: encode, prefill in chunks, decode")
    bottom.set_xlabel("ms since the image was picked up")
    for axes in (top, bottom):
        axes.set_xlim(left=0)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _busiest(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events from the first batch of one image to the start of the next: the image with the most batches, then overlap."""
    starts = [index for index, item in enumerate(events) if item["name"] == "open image"]
    ends = [*starts[1:], len(events)]
    windows = [events[start:end] for start, end in zip(starts, ends, strict=True)]
    windows = [window for window in windows if any(item["name"] == "patch_embed" for item in window)]
    if not windows:
        raise ValueError("the trace holds no encoded image")
    chosen = max(windows, key=lambda window: (sum(item["name"] == "patch_embed" for item in window), overlap_ms(window)))
    # One answer only: the next one begins with a prefill after a decode.
    decoded = False
    for index, item in enumerate(chosen):
        decoded |= item["name"] == "decode"
        if decoded and item["name"] == "prefill":
            return chosen[:index]
    return chosen


def _lanes(axes: Any, events: list[dict[str, Any]], start: float, lanes: list[str]) -> None:
    for row, name in enumerate(lanes):
        color = STAGES[name][1]
        for item in events:
            if item["name"] != name:
                continue
            left, width = (item["ts"] - start) / 1000, item["dur"] / 1000
            axes.barh(row, width, left=left, color=color, edgecolor="white", linewidth=0.6)
            if "batch" in item["args"] and name != "connector":
                axes.text(left + width / 2, row, str(item["args"]["batch"]), ha="center", va="center", fontsize=8)
    axes.set_yticks(range(len(lanes)), [STAGES[name][0] for name in lanes])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def overlap_ms(events: list[dict[str, Any]]) -> float:
    """Milliseconds in which patch embedding and vision blocks ran at the same time."""
    embedding, blocks = (
        [(item["ts"], item["ts"] + item["dur"]) for item in events if item["name"] == name]
        for name in ("patch_embed", "vision_encoder")
    )
    return sum(max(0.0, min(b, d) - max(a, c)) for a, b in embedding for c, d in blocks) / 1000
