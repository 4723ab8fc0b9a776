"""The Kotlin runtime as a program: built once, started with the JVM of this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.program import Ended

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "runtime" / "kotlin"
DESKTOP = PROJECT / "desktop" / "target"
MAIN = "dev.pocketvlm.runner.Main"
_BUILD_SECONDS = 900
_RUN_SECONDS = 600


def build() -> None:
    """Compile it and gather what it needs; a few seconds where nothing has changed."""
    maven = shutil.which("mvn")
    assert maven is not None, "the Kotlin runtime is built by Maven: install the packages maven and openjdk-17-jdk-headless"
    command = [maven, "--quiet", "--batch-mode", "-DskipTests", "package"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def jars() -> list[Path]:
    """What `build` made."""
    (own,) = DESKTOP.glob("pocketvlm-desktop-*.jar")
    return [own, *sorted((DESKTOP / "lib").glob("*.jar"))]


def run(*arguments: object, properties: dict[str, str] | None = None) -> Ended:
    """Run `dev.pocketvlm.runner.Main`."""
    settings = [f"-D{name}={value}" for name, value in (properties or {}).items()]
    command = ["java", *settings, "-cp", ":".join(map(str, jars())), MAIN, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_RUN_SECONDS, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def answers(
    bundle: Path, cases: list[dict[str, Any]], folder: Path, *options: object, properties: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """What it answers to conversations; `cases` are those of `Questionnaire.kt`."""
    asked, output = folder / "asked.json", folder / "answers.json"
    asked.write_text(json.dumps(cases), encoding="utf-8")
    ended = run("--bundle", bundle, "--ask", asked, "--output", output, *options, properties=properties)
    assert ended.code == 0, ended.out + ended.err
    found: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8"))
    return found
