"""The shipped checkpoint reads the shipped screenshots, through the bundle that `make demo` makes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
    """Nine tiles: while the vision blocks work on a batch, the patches of the next one are embedded on another thread."""
    trace = Trace()
    with VlmSession.open(demo_bundle, trace=trace) as session:
        content = [{"type": "image", "image": str(SCREENS / "screen-1.png")}, {"type": "text", "text": "What time is it?"}]
        stream = session.chat([{"role": "user", "content": content}])
        list(stream)
    assert stream.metrics.tiles == 9
    events = trace.to_json()["traceEvents"]
    assert len({event["tid"] for event in events if event["name"] in ("patch_embed", "vision_encoder")}) == 2
    assert schedule.overlap_ms([event for event in events if event["name"] in schedule.STAGES]) > 0
    schedule.draw_schedule(trace.to_json(), tmp_path / "schedule.png")
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")
