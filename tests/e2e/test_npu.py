"""The demo model on the NPU: as quantized graphs on the CPU, and, slowly, on Qualcomm's emulation of the NPU itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketvlm.runtime import VlmSession
from pocketvlm.runtime.trace import Trace

from .conftest import ROOT, Call

SCREENS = ROOT / "demo" / "screens"
RECIPE = ROOT / "export_configs" / "demo.qnn-SM8750.yaml"
# The model knows the answers to these on any screen.
EVERYWHERE = ("What is the title?", "What time is it?", "Read everything.")


def questions() -> Iterator[tuple[Path, str]]:
    """25 questions with known answers about the demo's screens, and as many about those of its calibration."""
    known = json.loads((SCREENS / "questions.json").read_text())
    for name, asked in known.items():
        for question, _ in asked:
            yield SCREENS / name, question
    for path in sorted((SCREENS / "calibration").glob("*.png")):
        for question in EVERYWHERE:
            yield path, question
    yield path, "Which option is selected?"


def answers(bundle: Path, target: str, asked: list[tuple[Path, str]], trace: Trace | None = None) -> list[str]:
    found = []
    with VlmSession.open(bundle, target=target, trace=trace) as session:
        for path, question in asked:
            content = [{"type": "image", "image": session.encode(path)}, {"type": "text", "text": question}]
            found.append("".join(session.chat([{"role": "user", "content": content}], temperature=0)))
    return found


def test_the_quantized_graphs_answer_as_the_cpu_variant(npu_bundle: Path) -> None:
    asked = list(questions())[:8]
    trace = Trace()
    assert answers(npu_bundle, "qnn-cpu", asked, trace) == answers(npu_bundle, "ort-cpu", asked)
    spans = {(event["name"], event["args"].get("batch")): event for event in trace.events if "dur" in event}
    ahead, behind = spans["patch_embed", 1], spans["vision_encoder", 0]
    # The CPU embeds the next tile while the encoder works on this one.
    assert ahead["ts"] < behind["ts"] + behind["dur"]
    assert ahead["tid"] != behind["tid"]


def test_inspect_and_verify_speak_of_the_npu(npu_bundle: Path, call: Call) -> None:
    found = call("inspect", npu_bundle, "--json").json
    npu = next(variant for variant in found["variants"] if variant["target"] == "qnn:SM8750")
    assert npu["device"]["soc"] == "SM8750"
    text = call("inspect", npu_bundle).out
    assert "qnn-SM8750: for SM8750 with QAIRT 2.50" in text
    assert "not emulated" in text
    assert "qnn-SM8750: 7 of 7 stages compared\n" in call("verify", npu_bundle).out


@pytest.mark.slow
def test_the_emulated_npu_answers_fifty_questions_as_the_cpu_does(tmp_path: Path, call: Call) -> None:
    assert call("export", ROOT / "demo" / "model", "-c", RECIPE, "-o", tmp_path / "bundle").code == 0
    asked = list(questions())
    assert len(asked) == 50
    expected = answers(tmp_path / "bundle", "ort-cpu", asked)
    found = answers(tmp_path / "bundle", "qnn:SM8750", asked)
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    print(f"{same} of {len(asked)} answers of the emulated NPU are those of the CPU")
    assert same >= 0.95 * len(asked)
