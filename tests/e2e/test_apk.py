"""The APK's variants: built, signed, checked, and refused where something is wrong with what goes in."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.android

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "android_demo"
BUILT = ROOT / "build" / "android"
LIBRARIES = {"libonnxruntime.so", "libonnxruntime4j_jni.so"}


def build(*options: object) -> subprocess.CompletedProcess[str]:
    command = [str(DEMO / "build_apk.sh"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    done = build()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the build, in which nothing has to be compiled again."""
    copy = tmp_path / "android"
    shutil.copytree(BUILT / "work", copy / "work")
    (copy / "cache").symlink_to(BUILT / "cache")
    return copy


@pytest.fixture(scope="module")
def jar() -> Path:
    """ONNX Runtime for desktops."""
    lines = (BUILT / "cache" / "libraries.files").read_text(encoding="utf-8").splitlines()
    return next(Path(line) for line in lines if "/onnxruntime-" in line)


@pytest.fixture(scope="module")
def tools() -> Any:
    sys.path.insert(0, str(DEMO / "tools"))
    try:
        import make_trial_aar
    finally:
        sys.path.remove(str(DEMO / "tools"))
    return make_trial_aar


@pytest.fixture(scope="module")
def archives(tools: Any, jar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the archives with native libraries."""
    folder = tmp_path_factory.mktemp("archives")
    tools.main(jar, folder)
    return folder


def libraries(apk: Path) -> dict[str, set[str]]:
    """Names of native libraries by ABI; all of them stored."""
    found: dict[str, set[str]] = {}
    with zipfile.ZipFile(apk) as archive:
        for entry in archive.infolist():
            if entry.filename.startswith("lib/"):
                assert entry.compress_type == zipfile.ZIP_STORED
                _, abi, name = entry.filename.split("/")
                found.setdefault(abi, set()).add(name)
    return found


def test_without_an_archive_the_name_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Whatever Maven and Gradle have fetched here.
    repository = tmp_path / "home" / ".m2"
    repository.mkdir(parents=True)
    monkeypatch.delenv("POCKETVLM_ONNXRUNTIME_AAR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    done = build("--output", folder)
    assert done.returncode == 0, done.stderr
    assert "NO native libraries" in done.stderr
    assert [path.name for path in folder.glob("*.apk*")] == ["pocketvlm-demo-without-natives.apk"]
    assert libraries(folder / "pocketvlm-demo-without-natives.apk") == {}


def test_with_native_libraries(folder: Path, archives: Path) -> None:
    done = build("--output", folder, "--onnxruntime-android", archives / "onnxruntime-android.aar")
    assert done.returncode == 0, done.stderr
    assert "pocketvlm-demo.apk: checked" in done.stdout
    assert libraries(folder / "pocketvlm-demo.apk") == {"arm64-v8a": LIBRARIES, "x86_64": LIBRARIES}


def test_for_the_npu(folder: Path, archives: Path) -> None:
    options = ["--qnn-aar", archives / "onnxruntime-android-qnn.aar", "--qnn-runtime-aar", archives / "qnn-runtime.aar"]
    done = build("--output", folder, "--npu", *options)
    assert done.returncode == 0, done.stderr
    found = libraries(folder / "pocketvlm-demo-npu.apk")
    assert set(found) == {"arm64-v8a"}
    assert found["arm64-v8a"] >= LIBRARIES | {"libQnnHtp.so", "libQnnSystem.so", "libQnnHtpV79Skel.so"}
    assert build("--output", folder, "--npu").returncode == 2


def test_segments_for_small_pages_are_refused(folder: Path, tools: Any, jar: Path, tmp_path: Path) -> None:
    archive = tmp_path / "old.aar"
    with zipfile.ZipFile(jar) as source:
        tools.write(archive, source, ["arm64-v8a", "x86_64"], alignment=4096)
    done = build("--output", folder, "--onnxruntime-android", archive)
    assert done.returncode == 4
    assert "has a segment aligned to 4096" in done.stderr
    assert [path.name for path in folder.glob("*.apk*")] == ["pocketvlm-demo.apk.rejected"]


def test_an_archive_without_a_processor_is_refused(folder: Path, archives: Path) -> None:
    done = build("--output", folder, "--onnxruntime-android", archives / "onnxruntime-android-qnn.aar")
    assert done.returncode != 0
    assert "no library for x86_64" in done.stderr
    assert list(folder.glob("*.apk*")) == []


def test_the_runner_is_one_jar() -> None:
    with zipfile.ZipFile(BUILT / "pocketvlm-runner.jar") as archive:
        assert archive.namelist() == ["classes.dex"]
        assert b"Ldev/pocketvlm/runner/Main;" in archive.read("classes.dex")
        assert b"Lai/onnxruntime/OrtSession;" in archive.read("classes.dex")


def test_options(tmp_path: Path) -> None:
    assert build("--help").returncode == 0
    assert "no such option: --nothing" in build("--nothing").stderr
    done = build("--output", tmp_path / "x", "--onnxruntime-android", tmp_path / "none.aar")
    assert "no such file" in done.stderr
