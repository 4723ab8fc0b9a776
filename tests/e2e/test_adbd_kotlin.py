"""The Kotlin runtime itself as the runner of a device behind a real adbd, with this computer's JVM in app_process' place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import kotlin_runtime
from tests.e2e.adbd import AdbDevice, require_tools
from tests.e2e.conftest import Call
from tests.e2e.phone import fake_runner_files, make_phone

pytestmark = pytest.mark.android

# app_process gets a setting, a folder, the class and its arguments.
APP_PROCESS = 'shift 2\nexec /jvm/bin/java -cp "/kotlin/*" "$@"\n'
SETTINGS = ("--prompt-tokens", 24, "--new-tokens", 4, "--repetitions", 2)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdbDevice]:
    """A phone whose runner is the Kotlin runtime."""
    require_tools()
    kotlin_runtime.build()
    java = shutil.which("java")
    assert java is not None
    jar, archive = fake_runner_files(tmp_path)
    monkeypatch.setenv("POCKETVLM_RUNNER", str(jar))
    monkeypatch.setenv("POCKETVLM_ONNXRUNTIME_AAR", str(archive))
    with AdbDevice(tmp_path / "device") as made:
        make_phone(made)
        made.bind(Path(java).resolve().parents[1], "/jvm")
        for path in kotlin_runtime.jars():
            made.bind(path, f"/kotlin/{path.name}")
        # Debian keeps a JVM's settings apart.
        for path in Path("/etc").glob("java-*-openjdk"):
            made.bind(path, str(path))
        made.program("app_process", APP_PROCESS)
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def test_bench_measures_the_same_work_on_the_device(
    call: Call, device: AdbDevice, exported: Callable[[str], Path], photograph: Path
) -> None:
    arguments = ["bench", exported("paper"), "--image", photograph, "--json", *SETTINGS]
    here = call(*arguments).json
    result = call(*arguments, "--device", "adb")
    assert result.code == 0, result.err
    there = result.json
    assert there["runtime"] == {"name": "kotlin", "version": "0.1.0", "onnxruntime": "1.29.0"}
    for key in ("model", "variant", "backend_actual", "stages", "settings"):
        assert there[key] == here[key], key
    for case, figures in here["results"].items():
        for name in ("tiles", "image_tokens", "prompt_tokens", "new_tokens"):
            assert there["results"][case][name] == figures[name], (case, name)
        assert there["results"][case]["decode_tok_s"]["median"] > 0
    assert any("image cold: run 2 of 2" in line for line in result.err.splitlines())


def test_what_the_runtime_refuses_there_is_the_same_error_here(
    call: Call, device: AdbDevice, exported: Callable[[str], Path]
) -> None:
    result = call("bench", exported("paper"), "--device", "adb", "--prompt-tokens", 100_000)
    result.failed(2, "--prompt-tokens 100000 does not fit into the bundle's")
    assert "on the device" in result.err
