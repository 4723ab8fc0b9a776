"""Running on emulated aarch64: what is prepared and kept, and what is told. A script stands for the emulator."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import BundleError, EnvironmentFault, PocketVLMError, SettingError, UsageError
from pocketvlm.toolchain.devices import aarch64_root, qemu
from pocketvlm.toolchain.devices.aarch64_root import Root
from pocketvlm.toolchain.devices.qemu import Emulation
from pocketvlm.toolchain.devices.report import BenchJob, Settings
from pocketvlm.toolchain.progress import SilentProgress

REPORT = {
    "model": "tiny", "variant": "ort-cpu", "backend_actual": "ort-cpu (onnxruntime)", "stages": {"decode": "onnxruntime"},
    "emulated": False, "settings": {"new_tokens": 8}, "note": "load_ms is not part of it",
    "results": {"text": {"ttft_ms": {"median": 9.0, "sd": None}}},
}  # fmt: skip


class Scripted:
    """An emulator whose programs do what a line of shell says; it keeps its last command line."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._program, self._seen = folder / "qemu-aarch64", folder / "seen"
        root = folder / "root"
        (root / "usr/bin").mkdir(parents=True)
        for name in ("python3", "python3.13", "python3-config"):
            (root / "usr/bin" / name).touch()
        monkeypatch.setattr(qemu, "emulator", lambda cache: self._program)
        monkeypatch.setattr(qemu, "python_root", lambda cache: Root(root, folder / "site"))
        qemu._version.cache_clear()

    def does(self, line: str) -> None:
        told = 'if [ "$1" = --version ]; then echo "qemu-aarch64 version 10.0.13 (Debian)"; exit; fi'
        kept = f'printf "%s\\n" "$PYTHONPATH" "$@" > {shlex.quote(str(self._seen))}'
        self._program.write_text(f"#!/bin/sh\n{told}\n{kept}\n{line}\n")
        self._program.chmod(0o755)

    def prints(self, value: Any, code: int = 0) -> None:
        self.does(f"echo {shlex.quote(json.dumps(value))}; exit {code}")

    @property
    def seen(self) -> list[str]:
        return self._seen.read_text().splitlines()


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    return Scripted(tmp_path, monkeypatch)


def job(bundle: Path, new_tokens: int = 8) -> BenchJob:
    return BenchJob(bundle, None, Settings(64, new_tokens, 1, None, None), None)


def test_files_for_android_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--runner is for Android"):
        qemu.bench(None, replace(job(tmp_path), runner=tmp_path), SilentProgress())


def test_figures_are_labelled_as_emulated(scripted: Scripted, tmp_path: Path) -> None:
    scripted.prints(REPORT)
    asked = replace(job(tmp_path / "bundle", new_tokens=3), image=tmp_path / "screen.png")
    found = qemu.bench("cortex-a76", asked, SilentProgress()).to_json()
    assert found["emulated"] is True
    assert found["note"] == ("emulated instruction by instruction: for correctness, never a latency; load_ms is not part of it")
    assert found["backend_actual"] == "ort-cpu (onnxruntime), emulated cortex-a76"
    assert found["stages"] == {"decode": "onnxruntime, emulated cortex-a76"}
    assert found["device"] == {
        "name": "an emulated cortex-a76", "kind": "qemu-aarch64", "cpu": "cortex-a76", "cpu_options": "cortex-a76",
        "qemu": "10.0.13",
    }  # fmt: skip
    assert {name: found[name] for name in ("model", "variant", "results")} == {
        name: REPORT[name] for name in ("model", "variant", "results")
    }
    assert found["settings"] == asdict(asked.settings)
    command = scripted.seen
    assert command[command.index("-cpu") + 1] == "cortex-a76"
    program = command[command.index("-P") - 1]
    assert Path(program).name == "python3.13"
    assert command[command.index("bench") + 1 :] == [
        str(tmp_path / "bundle"), "--json", "--prompt-tokens", "64", "--new-tokens", "3", "--repetitions", "1",
        "--image", str(tmp_path / "screen.png"),
    ]  # fmt: skip


def test_programs_there_import_this_pocketvlm_and_none_of_this_computers_packages(scripted: Scripted, tmp_path: Path) -> None:
    scripted.does('ls "${PYTHONPATH%%:*}"; ls "${PYTHONPATH%%:*}/pocketvlm"')
    listed = Emulation().run_python(["-c", "pass"]).stdout.splitlines()
    assert listed[0] == "pocketvlm"
    assert {"errors.py", "runtime", "toolchain"} <= set(listed[1:])
    assert not {"numpy", "onnxruntime"} & set(listed)
    assert scripted.seen[0].endswith(f":{tmp_path / 'site'}")


@pytest.mark.parametrize(
    ("code", "kind"),
    [("bad_bundle", BundleError), ("usage", UsageError), ("environment", EnvironmentFault), ("?", EnvironmentFault)],
)
def test_an_error_there_is_the_same_error_here(
    scripted: Scripted, tmp_path: Path, code: str, kind: type[PocketVLMError]
) -> None:
    scripted.prints({"error": {"code": code, "message": "it is broken", "hint": "mend it"}}, 3)
    with pytest.raises(kind, match=r"^qemu-aarch64: it is broken \(mend it\)$") as caught:
        qemu.bench(None, job(tmp_path / "bundle"), SilentProgress())
    assert not isinstance(caught.value, SettingError)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("echo no object; exit 1", "ended with exit code 1 and no result"),
        ("kill -SEGV $$", r"the emulation of cortex-a710 crashed \(exit code -11\)"),
        ("sleep 60", "not finished within 1 seconds"),
    ],
)
def test_what_is_no_answer_is_a_fault(scripted: Scripted, tmp_path: Path, line: str, message: str) -> None:
    scripted.does(f"exec {line}" if line.startswith("sleep") else line)
    with pytest.raises(EnvironmentFault, match=message):
        qemu.bench(None, replace(job(tmp_path / "bundle"), timeout_s=1), SilentProgress())


def test_unknown_processors_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'cortex-a7' \(there are cortex-a76, cortex-a710, max\)"):
        Emulation("cortex-a7")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(aarch64_root, "KEYRING", tmp_path / "none.gpg")
    with pytest.raises(EnvironmentFault, match=r"missing: apt, dpkg, debian-archive-keyring \(on Debian .* apt-get install"):
        aarch64_root.emulator(tmp_path / "cache")


def test_what_was_prepared_is_kept_and_what_failed_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aarch64_root, "_check_tools", lambda: None)
    built: list[Path] = []

    def build(folder: Path) -> None:
        (folder / "apt").mkdir()
        (folder / "tool").touch()
        built.append(folder)
        if len(built) == 1:
            raise EnvironmentFault("no network")

    with pytest.raises(EnvironmentFault, match="no network"):
        aarch64_root._kept(tmp_path, "tool", ("1",), build)
    assert [path.name for path in tmp_path.iterdir()] == [".tool.lock"]
    kept = aarch64_root._kept(tmp_path, "tool", ("1",), build)
    assert [path.name for path in kept.iterdir()] == ["tool"]
    assert aarch64_root._kept(tmp_path, "tool", ("1",), build) == kept
    assert len(built) == 2
    assert aarch64_root._kept(tmp_path, "tool", ("2",), build) != kept


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aarch64_root, "_check_tools", lambda: None)
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match=r"file/aarch64: .* name another folder in POCKETVLM_CACHE"):
        aarch64_root._kept(tmp_path / "file" / "aarch64", "tool", (), lambda folder: None)


def test_links_of_a_root_stay_inside_it(tmp_path: Path) -> None:
    (tmp_path / "etc/java").mkdir(parents=True)
    (tmp_path / "etc/java/security").write_text("inside")
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/conf").symlink_to("/etc/java", target_is_directory=True)
    (tmp_path / "usr/lib/near").symlink_to("conf/security")
    aarch64_root._make_links_relative(tmp_path)
    assert (tmp_path / "usr/lib/conf").readlink() == Path("../../etc/java")
    assert (tmp_path / "usr/lib/near").read_text() == "inside"


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"POCKETVLM_CACHE": "/big"}, "/big/aarch64"),
        ({"XDG_CACHE_HOME": "/home/a/.c"}, "/home/a/.c/pocketvlm/aarch64"),
        ({"HOME": "/home/b"}, "/home/b/.cache/pocketvlm/aarch64"),
    ],
)
def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str) -> None:
    for name in ("POCKETVLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert aarch64_root.cache_folder() == Path(folder)
