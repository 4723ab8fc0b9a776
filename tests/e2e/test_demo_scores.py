"""The demo model answers as its card says, about screens that training never saw, before and after export.

Too slow for every run. Needs the fonts that demo/model/README.md names.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ROOT / "demo" / "training"
QUESTIONS = 1000


def scores(path: Path, *options: str) -> float:
    """Share of exactly right answers."""
    program = [sys.executable, "evaluate.py", str(path), "--questions", str(QUESTIONS), "--json", *options]
    done = subprocess.run(program, cwd=TRAINING, stdout=subprocess.PIPE, text=True, check=True)
    print(path.name, *options, done.stdout)
    found = json.loads(done.stdout)
    assert found["questions"] >= QUESTIONS
    return float(found["exact_match"])


@pytest.mark.slow
def test_screens_fonts_and_keys_that_training_never_saw(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    recipe = ROOT / "export_configs" / "demo.ort-cpu.yaml"
    export = [sys.executable, "-m", "pocketvlm", "export", str(ROOT / "demo" / "model"), "-c", str(recipe), "-o", str(bundle)]
    subprocess.run(export, check=True)
    model = ROOT / "demo" / "model"
    held_out, unseen = scores(model), scores(model, "--unseen")
    assert held_out >= 0.93
    assert unseen >= 0.80
    assert abs(scores(bundle) - held_out) <= 0.01
    assert abs(scores(bundle, "--unseen") - unseen) <= 0.01
