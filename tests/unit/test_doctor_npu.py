"""`pocketvlm doctor --target qnn:...`: the compiler that is installed here, and everything that may be wrong with one."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import onnxruntime_qnn
import pytest

from pocketvlm.errors import EnvironmentFault
from pocketvlm.runtime.engines import qnn_provider
from pocketvlm.runtime.engines.qnn_engine import QnnEngine
from pocketvlm.toolchain.cli import main

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
    assert list(checks) == ["glibc", "onnxruntime-qnn", target.removeprefix("qnn:"), "compiler"]
    assert all(check["ok"] for check in checks.values())
    assert checks["glibc"]["found"] == platform.libc_ver()[1]
    assert checks["onnxruntime-qnn"]["found"] == "loads, NPU emulated"
    assert checks[target.removeprefix("qnn:")]["found"] == told
    assert checks["compiler"]["found"] == f"QAIRT {onnxruntime_qnn.build_and_package_info.qnn_version}"
    code, out, err = doctor(target=target)
    assert (code, err) == (0, "")
    assert re.search(r"^ +compiler +QAIRT 2\.50\S* +any +ok", out, re.MULTILINE)
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
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name == "onnxruntime-qnn":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    advice = r"\(pip install 'pocketvlm\[export,qnn\]'; in a clone: '\.\[export,qnn\]'\)"
    failed(doctor(), 5, rf"onnxruntime-qnn \(missing, wanted ==2\.6\.0\) {advice}")
    # Others can do without it.
    assert doctor(target="ort-cpu")[0] == 0


def test_a_package_that_cannot_be_imported(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    failed(doctor(), 5, r"package onnxruntime-qnn is missing: .*pocketvlm\[qnn\]")


def test_an_old_c_library(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda *_: ("glibc", "2.31"))
    failed(doctor(), 5, r"glibc: 2\.31, needed is 2\.35 or newer \(use a newer Linux: ")


def test_another_c_library_has_no_such_version(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda *_: ("", ""))
    code, out, _ = doctor("--json")
    assert code == 0
    assert "glibc" not in {check["name"] for check in json.loads(out)["target"]}


def test_a_library_that_does_not_load(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "library.so").write_bytes(b"not a library")
    monkeypatch.setattr(onnxruntime_qnn, "get_library_path", lambda: str(tmp_path / "library.so"))
    # Under its own name it may be loaded in this process already.
    monkeypatch.setattr(qnn_provider, "PROVIDER", "BrokenExecutionProvider")
    monkeypatch.setattr(qnn_provider, "_devices", [])
    told = (
        r"onnxruntime-qnn: onnxruntime-qnn cannot be loaded: .*library\.so.*needed is a library that loads \(install .* again\)"
    )
    failed(doctor(), 5, told)
    # Nor is a bundle blamed for it.
    with pytest.raises(EnvironmentFault, match="onnxruntime-qnn cannot be loaded"):
        QnnEngine().open(tmp_path / "graph.onnx", {}, None)


def test_a_machine_without_a_device(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketvlm.toolchain.backends.qnn.environment.loaded_devices", list)
    failed(doctor(), 5, "onnxruntime-qnn: finds no device, needed is a library that loads")


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
