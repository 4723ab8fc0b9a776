"""The shipped checkpoint reads the shipped screenshots, through the bundle that `make demo` makes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from pocketvlm.runtime import VlmSession
from pocketvlm.runtime.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
SCREENS = ROOT / "demo" / "screens"
QUESTIONS: dict[str, list[list[str]]] = json.loads((SCREENS / "questions.json").read_text(encoding="utf-8"))


@pytest.fixture
def schedule(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    monkeypatch.delitem(sys.modules, "schedule", raising=False)
    import schedule

    return schedule


def test_every_question_is_answered_right(demo_bundle: Path) -> None:
    wrong = []
    with VlmSession.open(demo_bundle) as session:
        for name, pairs in QUESTIONS.items():
            for question, expected in pairs:
                content = [{"type": "image", "image": str(SCREENS / name)}, {"type": "text", "text": question}]
                answer = "".join(session.chat([{"role": "user", "content": content}], max_new_tokens=200))
                if answer != expected:
                    wrong.append((name, question, expected, answer))
    assert sum(map(len, QUESTIONS.values())) > 20
    assert wrong == []


def test_the_report_tells_what_the_export_cost(demo_bundle: Path) -> None:
    task = json.loads((demo_bundle / "report.json").read_text(encoding="utf-8"))["variants"]["ort-cpu"]["task"]
    assert task["questions"] == sum(map(len, QUESTIONS.values()))
    assert task["accuracy"] == task["reference_accuracy"] == 1.0


def test_the_schedule_shows_the_overlap(demo_bundle: Path, schedule: ModuleType, tmp_path: Path) -> None:
    """Nine tiles: while the vision blocks work on a batch, the patches of the next one are embedded on another thread.

    A patch embedding takes two milliseconds here; on a busy machine one may pass before the other thread wakes up. Several
    images are encoded, and one of them must show it.
    """
    trace = Trace()
    with Image.open(SCREENS / "screen-1.png") as opened:
        screen = opened.convert("RGB")
    with VlmSession.open(demo_bundle, trace=trace) as session:
        for number in range(8):
            screen.putpixel((0, 0), (number, number, number))
            content = [{"type": "image", "image": screen.copy()}, {"type": "text", "text": "What time is it?"}]
            stream = session.chat([{"role": "user", "content": content}])
            list(stream)
            assert stream.metrics.tiles == 9
    events = trace.to_json()["traceEvents"]
    threads = {name: {event["tid"] for event in events if event["name"] == name} for name in ("patch_embed", "vision_encoder")}
    assert len(threads["vision_encoder"]) == 1
    assert not threads["patch_embed"] & threads["vision_encoder"]
    assert schedule.overlap_ms([event for event in events if event["name"] in schedule.STAGES]) > 0
    schedule.draw_schedule(trace.to_json(), tmp_path / "schedule.png")
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")
