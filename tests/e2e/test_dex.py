"""The runtime as Android runs it: made Dalvik code by D8, and class files again, it answers on a JVM as Python does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from . import kotlin_runtime
from .test_kotlin import asked, by_python

pytestmark = pytest.mark.android

ROOT = Path(__file__).resolve().parents[2]
SCREENS = ROOT / "demo" / "screens"
FROM_DEX = ROOT / "build" / "android" / "pocketvlm-from-dex.jar"


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """The converted runtime, and the desktop's image files and main program, which stay as they are."""
    kotlin_runtime.build()
    subprocess.run([ROOT / "android_demo" / "build_apk.sh", "--from-dex"], check=True, timeout=1800)


def test_the_dexed_runtime_answers_as_python(demo_bundle: Path, tmp_path: Path) -> None:
    name, pairs = next(iter(json.loads((SCREENS / "questions.json").read_text(encoding="utf-8")).items()))
    question = pairs[0]["question"] if isinstance(pairs[0], dict) else pairs[0][0]
    cases = [asked(SCREENS / name, question)]
    file, output = tmp_path / "asked.json", tmp_path / "answers.json"
    file.write_text(json.dumps(cases), encoding="utf-8")
    # The converted classes come first, and have no stack maps. No class of the runtime may come from elsewhere.
    command = ["java", "-Xverify:none", "-verbose:class", "-cp", f"{FROM_DEX}:{kotlin_runtime.classpath()}"]
    options = ["--bundle", demo_bundle, "--ask", file, "--output", output]
    done = subprocess.run(
        [*command, "dev.pocketvlm.runner.Main", *map(str, options)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = [line for line in done.stdout.splitlines() if " dev.pocketvlm.runtime." in line or " ai.onnxruntime.Ort" in line]
    assert len(loaded) > 100
    assert all(FROM_DEX.name in line for line in loaded)
    expected, found = by_python(demo_bundle, cases), json.loads(output.read_text(encoding="utf-8"))
    assert [answer["token_ids"] for answer in found] == [answer["token_ids"] for answer in expected]
    assert [answer["text"] for answer in found] == [answer["text"] for answer in expected]
    assert found[0]["text"].strip()
