"""What a user installs: the source archive makes the wheel, and the wheel alone answers from a bundle."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from pocketvlm.toolchain.cli import main

ROOT = Path(__file__).resolve().parents[2]
SCREENS = ROOT / "demo" / "screens"
HEAVY = {"torch", "transformers", "onnx", "optimum", "safetensors", "jinja2", "ruamel.yaml", "psutil", "matplotlib"}
PROGRAM = """
import sys
from pocketvlm.runtime import VlmSession

with VlmSession.open(sys.argv[1]) as session:
    screen = session.encode(sys.argv[2])
    question = {"type": "text", "text": sys.argv[3]}
    messages = [{"role": "user", "content": [{"type": "image", "image": screen}, question]}]
    for piece in session.chat(messages, max_new_tokens=16):
        print(piece, end="", flush=True)
"""
REQUIRED = """
import json, re
from importlib.metadata import requires
print(json.dumps([re.match("[A-Za-z0-9_-]+", item)[0] for item in requires("pocketvlm") if "extra ==" not in item]))
"""
LOADED = """
import json, sys
import pocketvlm.runtime
names = ("torch", "transformers", "onnx", "typer", "rich", "jinja2", "safetensors", "pocketvlm.toolchain")
print(json.dumps([name for name in names if name in sys.modules]))
"""


def run(*command: object, **environment: str) -> str:
    """Output of a command that must succeed, in an environment without this checkout."""
    names = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(item) for item in command], env=names | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def build(folder: Path) -> tuple[Path, Path]:
    """The source archive of a copy of this checkout, and the wheel that is built from that archive."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("src", "runtime", "toolchain"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    tools = folder / "tools"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--target", tools, "build", "setuptools>=77")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source]
    run(*command, PYTHONPATH=str(tools))
    (archive,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return archive, wheel


def test_wheel_of_the_source_archive_answers_with_four_packages_only(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, wheel = build(tmp_path)
    # runtime/ and toolchain/ are links in src/pocketvlm; both archives must hold what they lead to.
    ours = {
        f"pocketvlm/{folder}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder in ("runtime", "toolchain")
        for path in (ROOT / folder).rglob("*")
        # The Kotlin runtime is a program of its own.
        if path.is_file() and not {"__pycache__", "kotlin"} & set(path.parts)
    }
    ours |= {f"pocketvlm/{name}" for name in ("__init__.py", "__main__.py", "errors.py", "py.typed")}
    with zipfile.ZipFile(wheel) as opened:
        assert {name for name in opened.namelist() if name.startswith("pocketvlm/")} == ours
    with tarfile.open(archive) as opened_archive:
        files = {member.name.partition("/")[2] for member in opened_archive if member.isfile()}
    assert {f"src/{name}" for name in ours} <= files

    place = tmp_path / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--only-binary=:all:", wheel)
    installed = {item["name"].lower().replace("_", "-") for item in json.loads(run(*pip, "list", "--format=json"))}
    # pip installs what is required and what that requires in its turn, nothing else.
    wanted = json.loads(run(python, "-c", REQUIRED))
    assert sorted(wanted) == ["numpy", "onnxruntime", "pillow", "tokenizers"]
    assert installed >= {"pocketvlm", *wanted}
    assert not installed & HEAVY

    screen = SCREENS / "screen-1.png"
    question, expected = json.loads((SCREENS / "questions.json").read_text())["screen-1.png"][0]
    answer = run(python, "-c", PROGRAM, demo_bundle, screen, question)
    assert answer == expected
    assert main(["run", str(demo_bundle), question, "--image", str(screen), "--max-new-tokens", "16"]) == 0
    assert capsys.readouterr().out == answer + "\n"
    # Also where the heavy ones are installed, the runtime imports none of them.
    assert json.loads(run(python, "-c", LOADED)) == []
    assert json.loads(run(sys.executable, "-c", LOADED)) == []

    # The program is there, and says what it lacks.
    command = [place / "bin" / "pocketvlm", "run", demo_bundle, "hello"]
    lacking = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (lacking.returncode, lacking.stdout) == (5, "")
    advice = re.escape("(pip install 'pocketvlm[cli]'; in a clone: '.[cli]')")
    assert re.fullmatch(rf"error: the package \w+ is not installed {advice}\n", lacking.stderr)
