"""`pocketvlm doctor --target qnn:...`: the compiler that is installed here, and everything that may be wrong with one."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import onnxruntime_qnn
import pytest

from pocketvlm.errors import EnvironmentFault
from pocketvlm.runtime.engines import qnn_provider
from pocketvlm.runtime.engines.qnn_engine import QnnEngine
from pocketvlm.toolchain.backends.qnn import compiler
from pocketvlm.toolchain.backends.qnn.backend import Qnn
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.cli import main
from pocketvlm.toolchain.prepare import describe
from pocketvlm.toolchain.recipe import ExportRecipe

ROOT = Path(__file__).parents[2]
Doctor = Callable[..., tuple[int, str, str]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Exit code, stdout and stderr."""

    def run(*options: str, target: str = "qnn:SM8750") -> tuple[int, str, str]:
        code = main(["doctor", "--target", target, *options])
        return (code, *capsys.readouterr())

    return run


def failed(found: tuple[int, str, str], code: int, pattern: str) -> None:
    """One line on stderr says what is wrong."""
    assert found[0] == code, found
    assert re.fullmatch(rf"error: [^\n]*{pattern}[^\n]*\n", found[2]), found[2]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("qnn:SM8550", "Snapdragon 8 Gen 2, architecture v73, 8 MB on chip"),
        ("qnn:SM8750", "Snapdragon 8 Elite, architecture v79, 8 MB on chip"),
    ],
)
def test_all_is_well_here(doctor: Doctor, target: str, told: str) -> None:
    code, out, err = doctor("--json", target=target)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["ok"] is True
    checks = {check["name"]: check for check in found["target"]}
    assert list(checks) == ["glibc", target.removeprefix("qnn:"), "compiler"]
    assert all(check["ok"] for check in checks.values())
    assert checks["glibc"]["found"] == platform.libc_ver()[1]
    assert checks[target.removeprefix("qnn:")]["found"] == told
    version = onnxruntime_qnn.build_and_package_info.qnn_version
    assert checks["compiler"]["found"] == f"QAIRT {version}, compiles, NPU emulated"
    assert [check["name"] for check in found["checks"]][-4:] == ["onnxruntime-qnn", *checks]
    assert all(check["ok"] and check["detail"] and not check["fix"] for check in found["checks"])
    code, out, err = doctor(target=target)
    assert (code, err) == (0, "")
    assert re.search(r"^ +compiler +QAIRT 2\.50\S* compiles, NPU emulated +one that works +ok", out, re.MULTILINE)
    assert out.rstrip().endswith("ready for: runtime, command line, export, targets qnn:*")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("qnn:SM8751", r"unknown target 'qnn:SM8751' \(did you mean qnn:SM8750"),
        ("qnn:sm8650", r"unknown target 'qnn:sm8650' \(did you mean qnn:SM8"),
        ("qnn:", r"unknown target 'qnn:' \(known: ort-cpu, qnn:SM8550, "),
        ("qnn", r"unknown target 'qnn' \(known: ort-cpu, qnn:SM8550, "),
    ],
)
def test_an_unknown_soc(doctor: Doctor, target: str, told: str) -> None:
    failed(doctor(target=target), 2, told)


def test_a_package_that_is_not_installed(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch, "onnxruntime-qnn")
    advice = r"\(pip install 'pocketvlm\[export,qnn\]'; in a clone: '\.\[export,qnn\]'\)"
    failed(doctor(), 5, rf"onnxruntime-qnn \(missing, wanted ==2\.6\.0\) {advice}")
    # Others can do without it.
    assert doctor(target="ort-cpu")[0] == 0


def test_a_package_that_cannot_be_imported(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    failed(doctor(), 5, r"compiler: package onnxruntime-qnn is missing: .*pocketvlm\[qnn\]")
    # Nothing is left out for it, and no version is made up.
    found = doctor("--phone-runtime", "2.50")
    failed(found, 5, r"; runtime on the phone: QAIRT 2\.50, needed is that of the compiler or newer")


def test_all_that_is_wrong_is_told_at_once(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch, "jinja2")
    monkeypatch.setattr(platform, "libc_ver", lambda *_: ("glibc", "2.31"))
    told = r"jinja2 \(missing, wanted >=[\d.]+\); glibc: 2\.31, needed is 2\.35 or newer \(pip install .*; use a newer Linux"
    failed(doctor(), 5, told)
    code, out, err = found = doctor("--json", "--phone-runtime", "2.49")
    failed(found, 5, "jinja2 .*; glibc: .*; runtime on the phone: ")
    report = json.loads(out)
    assert (code, report["ok"]) == (5, False)
    assert report["error"]["code"] == "environment"
    assert report["error"]["message"] in err
    wrong = {check["name"]: check for check in report["checks"] if not check["ok"]}
    assert list(wrong) == ["jinja2", "glibc", "runtime on the phone"]
    assert wrong["jinja2"]["detail"].startswith("missing, wanted >=")
    assert re.fullmatch(r"pip install 'jinja2>=[\d.]+'", wrong["jinja2"]["fix"])
    assert wrong["glibc"]["detail"] == "2.31, needed is 2.35 or newer"
    assert all(check["fix"] for check in wrong.values())
    assert {"torch", "onnxruntime-qnn", "SM8750", "compiler"} <= {check["name"] for check in report["checks"] if check["ok"]}


def test_a_target_whose_code_cannot_be_loaded() -> None:
    """Without PyTorch there is no export, and the rest is told nevertheless."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pocketvlm.toolchain.cli import main; sys.exit(main(['doctor', '--target', 'qnn:SM8750', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    failed((done.returncode, done.stdout, done.stderr), 5, "target qnn:SM8750: not checked: .*torch.*pip install")
    report = json.loads(done.stdout)
    assert [check["name"] for check in report["checks"] if not check["ok"]] == ["target qnn:SM8750"]
    assert len(report["checks"]) > 10


def test_export_takes_no_other_version_than_doctor(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A bundle of another QAIRT would come out without a word, and not run on the phone."""
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.7.0" if name == "onnxruntime-qnn" else version(name))
    told = r"onnxruntime-qnn \(2\.7\.0, wanted ==2\.6\.0\)"
    failed(doctor(), 5, told)
    output = str(tmp_path / "bundle")
    code = main(["export", str(ROOT / "demo/model"), "--target", "qnn:SM8750", "--target", "ort-cpu", "-o", output])
    failed((code, *capsys.readouterr()), 5, rf"{told} \(pip install 'onnxruntime-qnn==2\.6\.0'\)")


def missing(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)


def test_an_old_c_library(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda *_: ("glibc", "2.31"))
    failed(doctor(), 5, r"glibc: 2\.31, needed is 2\.35 or newer \(use a newer Linux: ")


def test_another_c_library_has_no_such_version(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda *_: ("", ""))
    code, out, _ = doctor("--json")
    assert code == 0
    assert "glibc" not in {check["name"] for check in json.loads(out)["target"]}


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's folder, to be damaged: links to the files of the real one."""
    folder, real = tmp_path / "onnxruntime_qnn", Path(onnxruntime_qnn.__file__).parent
    folder.mkdir()
    for item in real.iterdir():
        if item.is_file():
            (folder / item.name).symlink_to(item)
    (tmp_path / "onnxruntime_qnn.libs").symlink_to(real.with_name("onnxruntime_qnn.libs"))
    # For child processes, and for this one, which may have loaded the real libraries.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    monkeypatch.setattr(onnxruntime_qnn, "__file__", str(folder / "__init__.py"))
    monkeypatch.setattr(onnxruntime_qnn, "LIB_DIR_FULL_PATH", str(folder))
    monkeypatch.setattr(qnn_provider, "PROVIDER", "BrokenExecutionProvider")
    monkeypatch.setattr(qnn_provider, "_devices", [])
    return folder


@pytest.mark.parametrize("library", ["libonnxruntime_providers_qnn.so", "libQnnHtp.so", "libQnnSystem.so"])
@pytest.mark.parametrize("left", [None, 3000])
def test_a_damaged_installation(doctor: Doctor, installation: Path, library: str, left: int | None) -> None:
    """Loading what is cut off would end the process."""
    path = installation / library
    content = path.read_bytes()
    path.unlink()
    if left is None:
        told = f"{library} is missing"
    else:
        path.write_bytes(content[:left])
        told = f"{library} has {left} bytes instead of {len(content)}"
    told = rf"package onnxruntime-qnn is damaged: {re.escape(str(installation))}/{re.escape(told)}"
    with Checkpoint.open(str(ROOT / "demo/model")) as checkpoint:
        spec, _ = describe(checkpoint)
    again = r"pip install --force-reinstall --no-deps onnxruntime-qnn==2\.6\.0\)"
    failed(doctor(), 5, rf"compiler: QAIRT 2\.50\S* does not work: {told}.* \(install it again: {again}")
    with pytest.raises(EnvironmentFault, match=rf"{told} \({again}"):
        Qnn("qnn:SM8750").check(spec, ExportRecipe(targets=("qnn:SM8750", "ort-cpu")))
    # Nor is a bundle blamed for it.
    with pytest.raises(EnvironmentFault, match=told):
        QnnEngine().open(installation / "graph.onnx", {}, None)


def test_an_installation_that_crashes(doctor: Doctor, installation: Path) -> None:
    """Of the right size, and full of nothing."""
    path = installation / "libonnxruntime_providers_qnn.so"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:100_000] + bytes(len(content) - 100_000))
    told = r"does not work: one node: the compiler failed \(ended by signal \d+\): it said nothing, .* \(install it again: "
    failed(doctor(), 5, rf"compiler: QAIRT \S+ {told}")


def test_a_library_that_does_not_load(doctor: Doctor, installation: Path) -> None:
    path = installation / "libQnnHtp.so"
    size = path.stat().st_size
    path.unlink()
    with path.open("wb") as file:
        file.write(b"not a library")
        file.truncate(size)
    failed(doctor(), 5, r"does not work: .*onnxruntime-qnn cannot be loaded: \S*libQnnHtp\.so: invalid ELF header")
    with pytest.raises(EnvironmentFault, match=r"onnxruntime-qnn cannot be loaded: .*libQnnHtp\.so.* \(pip install --force-"):
        QnnEngine().open(installation / "graph.onnx", {}, None)


def test_a_package_that_no_installer_knows_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", unknown)
    qnn_provider.check_library()


def test_a_machine_without_a_device(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = """
from pocketvlm.runtime.engines import qnn_provider
from pocketvlm.toolchain.backends.qnn import compile_worker
qnn_provider.loaded_devices = list
compile_worker.main()
"""
    (tmp_path / "no_device.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    monkeypatch.setattr(compiler, "_WORKER", "no_device")
    failed(doctor(), 5, r"compiler: QAIRT \S+ does not work: .*onnxruntime-qnn finds no device here")


def test_no_room_to_try_the_compiler(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "scratch")

    monkeypatch.setattr("pocketvlm.toolchain.backends.qnn.environment.run_worker", full)
    told = r"compiler: not tried: scratch: No space left on device, needed is one that works"
    failed(doctor(), 5, rf"{told} \(free some space, or set TMPDIR to a folder that has some\)")


def test_the_emulation_is_loaded_without_its_greeting() -> None:
    """It comes from C, whenever Qualcomm's library is loaded; what else is said is not lost."""
    code = (
        "from pocketvlm.runtime.engines import qnn_provider as p; import ctypes, sys; load = ctypes.CDLL\n"
        "def noisy(path):\n"
        "    library = load(path)\n"
        "    if path and 'QnnHtp' in path: ctypes.CDLL(None).puts(b'something else')\n"
        "    return library\n"
        "ctypes.CDLL = noisy; sys.exit(not p.loaded_devices())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "something else\n")


@pytest.mark.parametrize("version", ["2.50", "2.50.0", "2.51.1.260101", "3.0", "2.100"])
def test_a_phone_that_is_new_enough(doctor: Doctor, version: str) -> None:
    code, out, err = doctor("--phone-runtime", version, "--json")
    assert (code, err) == (0, "")
    last = json.loads(out)["target"][-1]
    assert (last["name"], last["found"], last["needed"]) == ("runtime on the phone", f"QAIRT {version}", "2.50 or newer")


@pytest.mark.parametrize("version", ["2.49.9", "2.5", "1.99", "0.0"])
def test_a_phone_that_is_too_old(doctor: Doctor, version: str) -> None:
    advice = r"\(ship com\.qualcomm\.qti:qnn-runtime 2\.50"
    told = rf"runtime on the phone: QAIRT {re.escape(version)}, needed is 2\.50 or newer {advice}"
    failed(doctor("--phone-runtime", version), 5, told)


@pytest.mark.parametrize(
    "version", ["newest", "", " ", "2", "v2.50", "2.50-beta", "2..50", "-2.50", "2,50", "2.50\n", "9" * 5000]
)
def test_a_phone_version_that_is_none(doctor: Doctor, version: str) -> None:
    failed(
        doctor(f"--phone-runtime={version}"), 2, r"--phone-runtime .* is no version of QAIRT or qnn-runtime \(give two or more"
    )


def test_a_phone_without_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--phone-runtime", "2.50"]) == 2
    assert "--phone-runtime needs a target" in capsys.readouterr().err


def test_the_extra_for_the_npu_holds_its_package_alone() -> None:
    """Who runs a bundle on a Snapdragon shall not have to install what exports one."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [re.match(r"[\w-]+", item)[0] for item in extras["qnn"]] == ["onnxruntime-qnn"]  # type: ignore[index]
    assert {"pocketvlm[export]"} <= set(extras["dev"])
    assert any(item.startswith("pocketvlm[qnn]") for item in extras["dev"])
