"""The benchmark on a device: the files for it, its command line, and what is made of its result, without any device."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocketvlm import errors
from pocketvlm.errors import EnvironmentFault, PocketVLMError, UsageError
from pocketvlm.toolchain.devices import ability, remote_bench, runner_files, split
from pocketvlm.toolchain.devices.adb import Answer
from pocketvlm.toolchain.devices.bundle_pushing import default_directory
from pocketvlm.toolchain.devices.remote_bench import Place, default_timeout, runner_command
from pocketvlm.toolchain.devices.report import BenchJob, BenchReport, Settings
from pocketvlm.toolchain.devices.runner_files import find_archive, find_runner, unpack_libraries

from .command_line import REPLY, BundleAt, Call

SETTINGS = Settings(128, 64, 5, None, None)
JOB = BenchJob(Path("bundle"), None, SETTINGS, None)
RESULT: dict[str, Any] = {
    "model": "tiny", "variant": "cpu", "backend_actual": "ort-cpu (onnxruntime)", "stages": {"decode": "onnxruntime"},
    "emulated": False,
    "settings": {"prompt_tokens": 128, "new_tokens": 64, "repetitions": 5, "threads": None, "image": None},
    "note": "without load_ms",
    "results": {"text": {"ttft_ms": {"median": 100, "sd": 1.5}, "tiles": {"median": 0.0, "sd": None}}},
    "runtime": {"name": "kotlin", "version": "0.1.0", "onnxruntime": "1.29.0"},
}  # fmt: skip


def fault(call: Callable[[], Any]) -> EnvironmentFault:
    with pytest.raises(EnvironmentFault) as caught:
        call()
    return caught.value


# the device on the command line


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("host", ("host", None)),
        ("adb", ("adb", None)),
        ("adb:R5CT", ("adb", "R5CT")),
        ("adb:10.0.0.2:5555", ("adb", "10.0.0.2:5555")),
    ],
)
def test_kinds_and_addresses(text: str, wanted: tuple[str, str | None]) -> None:
    assert split(text) == wanted


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["bench", "b", "--device", "adbx"], r"unknown kind of device 'adbx' .did you mean adb\?"),
        (["bench", "b", "--device", ""], "unknown kind of device"),
        (["bench", "b", "--device", "adb:"], "lacks what stands behind the colon"),
        (["bench", "b", "--device", "host:1"], "has no address"),
        (["bench", "b", "--timeout", "5"], "--timeout is for another device"),
        (["bench", "b", "--runner", "x.jar"], "--runner is for another device"),
        (["bench", "b", "--onnxruntime-android", "x.aar"], "--onnxruntime-android is for another device"),
        (["bench", "b", "--device", "adb", "--timeout", "0"], "timeout"),
        (["push", "b", "--device", "host"], "host has no `push`"),
        (["push", "b", "--to", ""], "--to"),
        (["doctor", "--device", "phone"], "unknown kind of device 'phone'"),
    ],
)
def test_wrong_usage(call: Call, arguments: list[str], pattern: str) -> None:
    call(*arguments).failed(2, pattern)


def test_the_host_is_a_device_like_others(call: Call, bundle_at: BundleAt) -> None:
    options = ["--prompt-tokens", 20, "--new-tokens", 4, "--repetitions", 1, "--json"]
    found = call("bench", bundle_at(chain=REPLY), "--device", "host", *options).json
    assert found.keys() == RESULT.keys() - {"runtime"}
    assert call("doctor", "--device", "host", "--json").json.keys() == call("doctor", "--json").json.keys()
    with pytest.raises(UsageError, match="host has no `examine`"):
        ability("host", "examine")


# files for the device


def archive(path: Path, entries: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in entries.items():
            opened.writestr(name, content)
    return path


LIBRARIES = {f"jni/arm64-v8a/{name}": name.encode() * 1000 for name in ("libonnxruntime.so", "libonnxruntime4j_jni.so")}


def test_the_runner_is_given_named_or_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_files, "_clone", lambda: tmp_path / "clone")
    error = fault(lambda: find_runner(None, {}))
    assert error.message == f"the runtime for Android is not there: {tmp_path}/clone/build/android/pocketvlm-runner.jar"
    assert "--runner or POCKETVLM_RUNNER" in error.hint
    built = archive(tmp_path / "clone/build/android/pocketvlm-runner.jar", {"classes.dex": b"dex"})
    named = archive(tmp_path / "named.jar", {"dev/pocketvlm/runner/Main.class": b"class"})
    given = archive(tmp_path / "given.jar", {"classes.dex": b"dex"})
    assert find_runner(None, {}) == built
    assert find_runner(None, {"POCKETVLM_RUNNER": str(named)}) == named
    assert find_runner(given, {"POCKETVLM_RUNNER": str(named)}) == given
    assert (
        fault(lambda: find_runner(None, {"POCKETVLM_RUNNER": "/none"})).message == "/none: no such file (from POCKETVLM_RUNNER)"
    )
    assert fault(lambda: find_runner(tmp_path / "none", {})).message == f"{tmp_path}/none: no such file (from --runner)"
    empty = archive(tmp_path / "empty.jar", {"META-INF/MANIFEST.MF": b""})
    assert "neither classes.dex nor dev/pocketvlm/runner/Main.class is in it" in fault(lambda: find_runner(empty, {})).message
    (tmp_path / "text.jar").write_text("no jar")
    assert "damaged: File is not a zip file" in fault(lambda: find_runner(tmp_path / "text.jar", {})).message


def test_the_archive_is_given_named_or_in_a_cache(tmp_path: Path) -> None:
    home = tmp_path / "home"
    error = fault(lambda: find_archive(None, {}, home))
    assert error.message == "ONNX Runtime for Android is not there: com.microsoft.onnxruntime:onnxruntime-android:1.29.0"
    assert "mvn dependency:get -Dartifact=com.microsoft.onnxruntime:onnxruntime-android:1.29.0:aar" in error.hint
    name = "onnxruntime-android-1.29.0.aar"
    gradle = archive(
        home / ".gradle/caches/modules-2/files-2.1/com.microsoft.onnxruntime/onnxruntime-android/1.29.0/0a1b" / name, {}
    )
    assert find_archive(None, {}, home) == gradle
    maven = archive(home / ".m2/repository/com/microsoft/onnxruntime/onnxruntime-android/1.29.0" / name, {})
    assert find_archive(None, {}, home) == maven
    archive(maven.with_name("onnxruntime-android-1.29.0-sources.aar"), {})
    assert find_archive(None, {}, home) == maven
    assert find_archive(None, {"POCKETVLM_ONNXRUNTIME_AAR": str(gradle)}, home) == gradle
    assert find_archive(maven, {"POCKETVLM_ONNXRUNTIME_AAR": str(gradle)}, home) == maven


def test_only_the_libraries_of_the_device_leave_the_archive(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.aar", {**LIBRARIES, "classes.jar": b"x", "../../evil": b"x", "jni/arm64-v8a/libother.so": b"x"}
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    unpacked = unpack_libraries(path, "arm64-v8a", folder)
    assert {item.name: item.read_bytes() for item in folder.iterdir()} == {
        name.rpartition("/")[2]: content for name, content in LIBRARIES.items()
    }
    assert unpacked == [folder / "libonnxruntime.so", folder / "libonnxruntime4j_jni.so"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.aar", "folder"]


def test_archives_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> str:
        folder = Path(os.fsdecode(tmp_path)) / f"out{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        error = fault(lambda: unpack_libraries(path, "arm64-v8a", folder))
        assert "onnxruntime-android:1.29.0" in error.hint
        return error.message

    assert refused(archive(tmp_path / "x86.aar", {"jni/x86_64/libonnxruntime.so": b"x"})).endswith(
        "jni/arm64-v8a/libonnxruntime.so is not in it"
    )
    damaged = archive(tmp_path / "damaged.aar", LIBRARIES)
    content = bytearray(damaged.read_bytes())
    content[60:64] = b"\xff\xff\xff\xff"
    damaged.write_bytes(content)
    assert "libonnxruntime.so is damaged" in refused(damaged)
    short = archive(tmp_path / "short.aar", LIBRARIES)
    short.write_bytes(short.read_bytes()[:-40])
    assert "damaged" in refused(short)
    twice = tmp_path / "twice.aar"
    with zipfile.ZipFile(twice, "w") as opened:
        opened.writestr("jni/arm64-v8a/libonnxruntime.so", b"x")
        with pytest.warns(UserWarning, match="Duplicate name"):
            opened.writestr("jni/arm64-v8a/libonnxruntime.so", b"y")
    assert "too many or repeated entries" in refused(twice)
    monkeypatch.setattr(runner_files, "_MAX_LIBRARY_BYTES", 100)
    assert "would be 17000 bytes" in refused(archive(tmp_path / "large.aar", LIBRARIES))


# the command line of the runner


def test_the_runners_command_line_is_quoted(tmp_path: Path) -> None:
    starter = tmp_path / "app_process"
    starter.write_text('#!/bin/sh\nprintf "%s\\n" "$CLASSPATH" "$@"\n')
    starter.chmod(0o755)
    job = BenchJob(Path("b"), Path("i"), Settings(9, 8, 7, 6, "i"), "qnn:SM8750+ort-cpu'; reboot")
    place = Place("/data/a place", "/data/run")
    line = runner_command(place, "/data/$(reboot)", "/data/i.png", job)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True, env=environment, timeout=10)
    assert done.stdout.splitlines() == [
        "/data/a place/pocketvlm-runner.jar",
        "-Djava.library.path=/data/a place/lib", "/data/a place", "dev.pocketvlm.runner.Main",
        "--bundle", "/data/$(reboot)", "--image", "/data/i.png", "--prompt-tokens", "9", "--new-tokens", "8",
        "--repetitions", "7", "--threads", "6", "--target", "qnn:SM8750+ort-cpu'; reboot", "--output", "/data/run/result.json",
    ]  # fmt: skip
    assert "--image" not in runner_command(place, "/b", None, JOB)


def test_the_limit_grows_with_the_work() -> None:
    assert default_timeout(JOB) == 300 + 6 * 120
    with_image = BenchJob(Path("b"), Path("i"), Settings(9, 8, 10, None, "i"), None)
    assert default_timeout(with_image) == 300 + 2 * 11 * 120


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("my-bundle", "my-bundle"),
        ("a b/ü c'$(x).zip", "c-x-"),
        (".hidden", "hidden"),
        ("--", "bundle"),
        ("x/", "x"),
        (r"C:\bundles\one", "one"),
    ],
)
def test_a_bundles_folder_on_the_device(name: str, wanted: str) -> None:
    class Named:
        directory = Path("/nowhere/else")

    bundle: Any = Named()
    bundle.name = name
    assert default_directory(bundle) == f"/data/local/tmp/pocketvlm/{wanted}"


# its result


def parse(content: bytes, job: BenchJob = JOB) -> BenchReport:
    return remote_bench._parse("R5CT", content, job)


def test_a_result_is_the_contracts_object() -> None:
    report = parse(json.dumps(RESULT).encode())
    assert report.to_json() == RESULT


def changed(path: str, value: Any = None) -> bytes:
    """The result with one value replaced, or removed when the path ends with "!"."""
    result = copy.deepcopy(RESULT)
    *parents, last = path.removesuffix("!").split(".")
    place = result
    for name in parents:
        place = place[name]
    if path.endswith("!"):
        del place[last]
    else:
        place[last] = value
    return json.dumps(result).encode()


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", "is no JSON"),
        (json.dumps(RESULT).encode()[:-1], "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "has list, and must have"),
        (b"{}", r"has \[\], and must have"),
        (changed("runtime!"), "and must have"),
        (changed("device", {}), "and must have"),
        (changed("remarks", []), "and must have"),
        (changed("runtime"), "does not say who answered"),
        (changed("runtime.onnxruntime!"), r"result.runtime: \{'name': 'kotlin', 'version': '0.1.0'\} has the wrong type"),
        (changed("model", 3), "result.model: expected str"),
        (changed("results.text.ttft_ms.median", "fast"), "result.results.text.ttft_ms.median"),
        (changed("results.text.ttft_ms.median", float("nan")), "result.results.text.ttft_ms.median"),
        (changed("results.text.ttft_ms.median"), "text.ttft_ms has no median and sd"),
        (changed("results.text.ttft_ms.sd!"), "text.ttft_ms has no median and sd"),
        (changed("results.text!"), r"has cases \[\], asked were \['text'\]"),
        (changed("results.image cold", {}), "has cases"),
        (changed("settings.prompts", 3), "unknown key 'prompts'"),
    ],
)
def test_results_that_are_none(content: bytes, pattern: str) -> None:
    with pytest.raises(EnvironmentFault, match=pattern) as caught:
        parse(content)
    assert caught.value.message.startswith("device R5CT: the benchmark's result")
    assert caught.value.hint


def kinds() -> list[type[PocketVLMError]]:
    return [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, PocketVLMError)]


def failure(code: int, out: str, err: str = "") -> PocketVLMError:
    return remote_bench._failure("R5CT", Answer(code, out.encode(), err))


@pytest.mark.parametrize("kind", [item for item in kinds() if item not in (PocketVLMError, errors.SettingError)])
def test_every_error_comes_back_as_itself(kind: type[PocketVLMError]) -> None:
    told = {"error": {"code": kind.code, "message": "wrong", "hint": "do"}}
    error = failure(kind.exit_code, "noise\n" + json.dumps(told) + "\n")
    assert (type(error), error.message, error.hint) == (kind, "on the device R5CT: wrong", "do")
    assert (error.code, error.exit_code) == (kind.code, kind.exit_code)


def test_a_bug_of_the_runner_is_one_here() -> None:
    error = failure(1, '{"error": {"code": "bug", "message": "NullPointerException", "hint": ""}}')
    assert (type(error), error.code, error.exit_code) == (PocketVLMError, "bug", 1)
    assert "report it" in error.hint


@pytest.mark.parametrize(
    "out",
    [
        "",
        "{}",
        "[1]",
        "3",
        '{"error": "x"}',
        '{"error": {"code": 3, "message": "m"}}',
        '{"error": {"message": "m"}}',
        "{" * 99999,
    ],
)
def test_words_that_are_no_error_object(out: str) -> None:
    error = failure(4, out, "one\ntwo\n")
    assert (type(error), error.message) == (
        EnvironmentFault, "device R5CT: the benchmark ended with exit code 4 and no result; its last words: two"
    )  # fmt: skip


@pytest.mark.parametrize(("code", "name"), [(134, "SIGABRT"), (137, "SIGKILL"), (139, "SIGSEGV"), (143, "SIGTERM")])
def test_crashes_have_names(code: int, name: str) -> None:
    error = failure(code, "")
    assert error.message == f"device R5CT: the benchmark crashed ({name})"
    assert ("memory is short" in error.hint) == (name == "SIGKILL")
