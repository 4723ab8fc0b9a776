"""push, doctor and bench against a real adbd, with the faults that a phone on a cable has."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import BundleError
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.manifest_reader import parse_manifest
from tests.e2e.adbd import LIMIT, SERIAL, AdbDevice, require_tools, wait_for
from tests.e2e.conftest import Call, Result, contents
from tests.e2e.phone import fake_runner_files, make_phone, set_error, set_mode
from tests.unit.conftest import make_bundle, write_manifest

pytestmark = pytest.mark.android

ROOT = "/data/local/tmp/pocketvlm"
PLACE = f"{ROOT}/bundle"
MEGABYTE = 1_000_000
DEVICE = ("--device", "adb")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdbDevice]:
    """A phone, the only device that adb sees."""
    require_tools()
    with AdbDevice(tmp_path / "device") as made:
        make_phone(made)
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with one file of some megabytes."""
    return with_files(make_bundle(tmp_path / "bundle"), weights=4 * MEGABYTE)


def with_files(bundle: Path, **sizes: int) -> Path:
    """Add files of random bytes, "<name>.bin", to a bundle, or replace them; a size of 0 removes one."""
    manifest = parse_manifest((bundle / "manifest.json").read_text())
    for name, size in sizes.items():
        path = bundle / f"{name}.bin"
        block = random.Random(f"{name}{size}").randbytes(MEGABYTE)
        path.write_bytes(block * (size // MEGABYTE) + block[: size % MEGABYTE])
        if not size:
            path.unlink()
    write_manifest(bundle, manifest)
    return bundle


def push(call: Call, bundle: Path, *options: object) -> dict[str, Any]:
    result = call("push", bundle, *DEVICE, "--json", *options)
    assert result.code == 0, result.err
    found: dict[str, Any] = result.json
    return found


def failed_push(call: Call, bundle: Path, pattern: str, *options: object, code: int = 5) -> None:
    result = call("push", bundle, *DEVICE, *options)
    result.failed(code, pattern)
    assert result.out == ""


def same(device: AdbDevice, bundle: Path, place: str = PLACE) -> bool:
    """Whether the device has the bundle, whole, and a reader opens it."""
    Bundle.open(device.path(place))
    return contents(device.path(place)) == contents(bundle)


def halves(device: AdbDevice) -> list[str]:
    """Files that a push or a run has not finished, the parked manifest apart."""
    return [path.name for path in device.path(ROOT).rglob("*.part") if path.name != "manifest.json.part"]


@contextmanager
def meanwhile(condition: Any, action: Any) -> Iterator[None]:
    """Watch from another thread for a condition, and act as soon as it holds; fails if it never did."""
    stop, done = threading.Event(), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            try:
                if condition():
                    action()
                    done.set()
                    return
            except OSError:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LIMIT)
    assert done.is_set(), "what should happen meanwhile did not"


# push


def test_a_bundle_arrives_once(call: Call, device: AdbDevice, bundle: Path) -> None:
    count, size = len(contents(bundle)), sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    found = push(call, bundle)
    assert (found["device"], found["directory"]) == (SERIAL, PLACE)
    assert (found["files_sent"], found["files_kept"], found["files_removed"]) == (count, 0, 0)
    assert (found["bytes_sent"], found["bytes_kept"]) == (size, 0)
    assert found["mb_per_s"] > 0
    assert same(device, bundle)
    found = push(call, bundle)
    assert (found["files_sent"], found["files_kept"], found["bytes_sent"], found["bytes_kept"]) == (0, count, 0, size)
    assert found["mb_per_s"] is None
    text = call("push", bundle, "--device", f"adb:{SERIAL}")
    assert re.fullmatch(rf"{SERIAL}:{PLACE}: 0 files sent, 0 bytes; {count} were there; \d+\.\d s\n", text.out)
    assert text.err == f"compare with {SERIAL}:{PLACE}\n"


def test_progress_and_the_place_are_told(call: Call, device: AdbDevice, bundle: Path) -> None:
    place = "/data/local/tmp/a b'$(reboot);"
    result = call("push", bundle, *DEVICE, "--to", place + "/")
    assert result.code == 0, result.err
    assert re.search(rf"^push (\d+) of \1 files, 4\.\d MB, to {SERIAL}$", result.err, re.MULTILINE)
    assert same(device, bundle, place)


def test_a_zip_arrives_as_the_folder_that_it_holds(call: Call, device: AdbDevice, bundle: Path) -> None:
    import zipfile

    archive = bundle.with_name("my bundle.zip")
    with zipfile.ZipFile(archive, "w") as opened:
        for path in bundle.rglob("*"):
            opened.write(path, path.relative_to(bundle))
    assert push(call, archive)["directory"] == f"{ROOT}/my-bundle"
    assert same(device, bundle, f"{ROOT}/my-bundle")


def test_only_what_differs_travels(call: Call, device: AdbDevice, bundle: Path) -> None:
    with_files(bundle, old=1000)
    count = push(call, bundle)["files_sent"]
    with_files(bundle, weights=2 * MEGABYTE)
    found = push(call, bundle)
    # The file, the manifest that names its hash, and the manifest's own.
    assert (found["files_sent"], found["files_kept"], found["files_removed"]) == (3, count - 3, 0)
    assert same(device, bundle)
    with_files(bundle, old=0)
    found = push(call, bundle)
    assert (found["files_sent"], found["files_removed"]) == (2, 1)
    assert same(device, bundle)


def test_damage_on_the_device_is_noticed(call: Call, device: AdbDevice, bundle: Path) -> None:
    push(call, bundle)
    damaged = device.path(f"{PLACE}/weights.bin")
    content = bytearray(damaged.read_bytes())
    content[1234] ^= 1
    damaged.write_bytes(content)
    found = push(call, bundle)
    assert (found["files_sent"], found["bytes_sent"]) == (1, 4 * MEGABYTE)
    assert same(device, bundle)


@pytest.mark.parametrize("name", ["weights.bin", "v", "manifest.json"])
def test_links_and_folders_in_the_place_of_files_are_replaced(
    call: Call, device: AdbDevice, bundle: Path, name: str
) -> None:  # fmt: skip
    push(call, bundle)
    place = device.path(f"{PLACE}/{name}")
    if name == "v":
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
        place.write_text("a file where a folder was")
    else:
        place.unlink()
        place.mkdir()
        (place / "inside").write_text("a folder where a file was")
    (device.path(PLACE) / "link").symlink_to("/etc/passwd")
    (device.path(PLACE) / "odd\nname 'x").write_text("surplus")
    (device.path(PLACE) / "empty" / "folder").mkdir(parents=True)
    (device.path(PLACE) / f"{name}.part").mkdir()
    push(call, bundle)
    assert same(device, bundle)
    assert not device.path(f"{PLACE}/empty").exists()
    assert device.path("/etc/passwd").exists()


def test_a_push_goes_on_where_adbd_was_killed(call: Call, device: AdbDevice, bundle: Path) -> None:
    push(call, with_files(bundle))
    with_files(bundle, aaa=3 * MEGABYTE, zzz=200 * MEGABYTE)
    part = device.path(f"{PLACE}/zzz.bin.part")
    with meanwhile(lambda: part.stat().st_size > 20 * MEGABYTE, device.kill):
        failed_push(call, bundle, rf"device {SERIAL} (has gone|is offline)")
    assert 20 * MEGABYTE < part.stat().st_size < 200 * MEGABYTE
    assert device.path(f"{PLACE}/aaa.bin").exists()
    # Neither the old bundle nor the new one is there to be opened.
    assert not device.path(f"{PLACE}/manifest.json").exists()
    with pytest.raises(BundleError):
        Bundle.open(device.path(PLACE))
    failed_push(call, bundle, f"{SERIAL} .*offline|not connected")
    device.restart()
    found = push(call, bundle)
    # The large file, the manifest's hash, the manifest.
    assert found["files_sent"] == 3
    assert found["bytes_sent"] < 201 * MEGABYTE
    assert same(device, bundle)
    assert halves(device) == []


def test_what_arrives_otherwise_than_it_was_sent_is_removed(call: Call, device: AdbDevice, bundle: Path) -> None:
    push(call, bundle)
    tool = device.path("/system/bin/sha256sum")
    tool.unlink()
    tool.write_text('#!/bin/sh\ncase "$*" in *weights*) echo "0000  $1";; *) toybox sha256sum "$@";; esac\n')
    tool.chmod(0o755)
    device.path("/system/bin/toybox").symlink_to("/usr/bin/toybox")
    failed_push(call, bundle, "bundle/weights.bin: what arrived is not what was sent")
    assert halves(device) == []
    assert not device.path(f"{PLACE}/weights.bin").exists()
    assert not device.path(f"{PLACE}/manifest.json").exists()


def test_an_interrupted_push_leaves_no_half_file(device: AdbDevice, bundle: Path) -> None:
    with_files(bundle, zzz=200 * MEGABYTE)
    command = [sys.executable, "-m", "pocketvlm.toolchain.cli", "push", str(bundle), *DEVICE]
    part = device.path(f"{PLACE}/zzz.bin.part")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)) as process:
        wait_for(lambda: part.exists() and part.stat().st_size > 20 * MEGABYTE, "the push")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out) == (130, b"")
    assert err.decode().splitlines()[-1] == "error: interrupted"
    assert halves(device) == []
    assert not device.path(f"{PLACE}/manifest.json").exists()


def test_what_does_not_fit_is_not_begun(call: Call, device: AdbDevice, bundle: Path) -> None:
    push(call, bundle)
    before = contents(device.path(PLACE))
    device.set_space(20 * MEGABYTE)
    with_files(bundle, weights=30 * MEGABYTE)
    failed_push(call, bundle, r"3\d\.\d MB are needed and \d+\.\d MB are free .remove something")
    assert contents(device.path(PLACE)) == before
    # What is replaced makes room.
    with_files(bundle, weights=14 * MEGABYTE)
    push(call, bundle)
    assert same(device, bundle)


def test_a_disk_that_fills_up_meanwhile(call: Call, device: AdbDevice, bundle: Path) -> None:
    with_files(bundle, aaa=MEGABYTE, zzz=200 * MEGABYTE)
    part = device.path(f"{PLACE}/zzz.bin.part")
    with meanwhile(lambda: part.stat().st_size > 20 * MEGABYTE, lambda: device.set_space(100 * MEGABYTE)):
        failed_push(call, bundle, "zzz.bin.part: no space left on the device .remove something")
    assert halves(device) == []
    assert device.path(f"{PLACE}/aaa.bin").exists()
    device.set_space(500 * MEGABYTE)
    assert push(call, bundle)["bytes_sent"] < 201 * MEGABYTE
    assert same(device, bundle)


def test_places_that_cannot_be_used(call: Call, device: AdbDevice, bundle: Path) -> None:
    device.write("/data/local/tmp/file", "")
    failed_push(call, bundle, "file: .*something else is in its place", "--to", "/data/local/tmp/file")
    failed_push(call, bundle, "file/below: .*something else is in its place", "--to", "/data/local/tmp/file/below")
    failed_push(call, bundle, "permission denied|No such file|not permitted", "--to", "/proc/here")
    for place in ("relative", "/", "/data/../etc", "/data/new\nline"):
        failed_push(call, bundle, "is no folder on a device", "--to", place, code=2)
    device.set_read_only(True)
    failed_push(call, bundle, "read-only file system .choose a folder below /data/local/tmp")
    device.set_read_only(False)
    device.write("/data/local/tmp/photos/holiday.jpg", "mine")
    failed_push(call, bundle, "photos holds something else than a bundle", "--to", "/data/local/tmp/photos")
    assert contents(device.path("/data/local/tmp/photos")).keys() == {"holiday.jpg"}


def test_a_bad_bundle_does_not_travel(call: Call, device: AdbDevice, bundle: Path) -> None:
    (bundle / "weights.bin").write_bytes(b"x" * 4 * MEGABYTE)
    failed_push(call, bundle, "weights.bin: sha256 differs", code=3)
    assert not device.path(ROOT).exists()


def test_without_a_device(call: Call, device: AdbDevice, bundle: Path) -> None:
    subprocess.run([device.programs / "adb", "disconnect"], check=True, capture_output=True, timeout=LIMIT)
    failed_push(call, bundle, "no device is connected .plug in a phone")
    result = call("push", bundle, "--device", "adb:127.0.0.1:1")
    result.failed(5, "device 127.0.0.1:1 is not connected, and no other is")


# doctor


def test_doctor_knows_the_phone(call: Call, device: AdbDevice, runner_files: tuple[Path, Path]) -> None:
    result = call("doctor", *DEVICE, "--target", "qnn:SM8750", "--json")
    assert result.code == 0, result.err
    found = result.json["device"]
    assert (found["serial"], found["model"], found["soc_model"], found["api_level"]) == (SERIAL, "Pixel 9", "SM8750", 35)
    assert (found["emulator"], found["abis"], found["state"]) == (False, ["arm64-v8a", "armeabi-v7a"], "device")
    assert [policy["governor"] for policy in found["cpu"]] == ["walt", "walt"]
    assert found["thermal"] == {"status": "light", "temperatures_c": {"CPU0": 36.9, "skin": 31.5}}
    assert found["battery"] == {"level_percent": 85.0, "charging": True, "plugged": True, "temperature_c": 28.5}
    assert found["memory_total_bytes"] == 1024 * int(re.findall(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())[0])
    assert 0 < found["free_bytes"] <= 1 << 30
    checks = {check["name"]: check for check in found["checks"]}
    assert list(checks) == [
        "adb", "device", "Android", "instruction set", "app_process", "tools of its shell", "space", "SoC of the device",
        "runtime for Android", "ONNX Runtime for Android",
    ]  # fmt: skip
    assert all(check["ok"] for check in checks.values())
    device.path("/services/thermalservice").unlink()
    device.write("/sys/class/thermal/thermal_zone0/temp", "41500\n")
    device.write("/sys/class/thermal/thermal_zone0/type", "cpu-0-0\n")
    device.write("/sys/class/thermal/thermal_zone1/type", "says nothing\n")
    text = call("doctor", *DEVICE).out
    assert "Google Pixel 9" in text
    assert "cpu-0-0 41.5 °C, battery 28.5 °C" in text
    assert "1.00 GHz, may have 4.32 of 4.32 GHz" in text


def test_doctor_says_what_is_wrong_with_it(call: Call, device: AdbDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETVLM_RUNNER", "/nowhere.jar")
    device.path("/usr/local/bin/app_process").unlink()
    device.set_space(50 * MEGABYTE)
    result = call("doctor", *DEVICE, "--target", "qnn:SM8650", "--json")
    assert result.code == 5
    wrong = [check["name"] for check in result.json["device"]["checks"] if not check["ok"]]
    assert wrong[:4] == ["app_process", "space", "SoC of the device", "runtime for Android"]
    assert "SoC of the device: SM8750, needed is SM8650" in result.err
    device.kill()
    result = call("doctor", *DEVICE, "--json")
    assert result.code == 5
    assert "device" in [check["name"] for check in result.json["device"]["checks"] if not check["ok"]]


# bench


@pytest.fixture
def runner_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A jar and an archive, which the environment names."""
    jar, archive = fake_runner_files(tmp_path)
    monkeypatch.setenv("POCKETVLM_RUNNER", str(jar))
    monkeypatch.setenv("POCKETVLM_ONNXRUNTIME_AAR", str(archive))
    return jar, archive


@pytest.fixture
def result_of(device: AdbDevice, runner_files: tuple[Path, Path]) -> dict[str, Any]:
    """What the runner will find, in the form of the contract."""
    figures = {"ttft_ms": {"median": 123.5, "sd": 1.5}, "new_tokens": {"median": 8, "sd": None}}
    found: dict[str, Any] = {
        "model": "tiny", "variant": "cpu", "backend_actual": "ort-cpu (onnxruntime)", "stages": {"decode": "onnxruntime"},
        "emulated": False,
        "settings": {"prompt_tokens": 20, "new_tokens": 8, "repetitions": 2, "threads": 4, "image": None},
        "note": "load_ms and one run that warms up are not part of the other figures",
        "results": {"text": figures},
        "runtime": {"name": "kotlin", "version": "0.1.0", "onnxruntime": "1.29.0"},
    }  # fmt: skip
    device.write("/runner/result.json", json.dumps(found))
    return found


OPTIONS = ("--prompt-tokens", 20, "--new-tokens", 8, "--repetitions", 2, "--threads", 4)


def bench(call: Call, bundle: Path, *options: object) -> Result:
    return call("bench", bundle, *DEVICE, *OPTIONS, *options)


def nothing_is_left(device: AdbDevice) -> None:
    assert device.processes("bin/app_process") == []
    # The shell that has waited for it has only to end itself.
    wait_for(lambda: not device.processes("dev.pocketvlm.runner.Main"), "the shells beside the runner to end")
    assert list(device.path(f"{ROOT}/.run").iterdir()) == []
    assert halves(device) == []


def test_bench_on_the_phone(call: Call, device: AdbDevice, bundle: Path, result_of: dict[str, Any]) -> None:
    result = bench(call, bundle, "--json")
    assert result.code == 0, result.err
    found = result.json
    about = found.pop("device")
    assert found == result_of
    assert (about["kind"], about["name"], about["emulator"]) == ("adb", f"Google Pixel 9 ({SERIAL})", False)
    for moment in ("before", "after"):
        assert about[moment]["cpu"][1]["cpus"] == [6, 7]
        assert about[moment]["thermal"]["status"] == "light"
        assert about[moment]["battery"]["level_percent"] == 85
    assert "text: one run to warm up and 2 to measure" in result.err.splitlines()
    assert same(device, bundle)
    runner = f"{ROOT}/.runner"
    assert contents(device.path(runner)).keys() == {
        "pocketvlm-runner.jar", "lib/libonnxruntime.so", "lib/libonnxruntime4j_jni.so"
    }  # fmt: skip
    assert b"arm64-v8a" in device.path(f"{runner}/lib/libonnxruntime.so").read_bytes()
    assert device.path("/runner/classpath").read_text() == f"{runner}/pocketvlm-runner.jar\n"
    words = [f"-Djava.library.path={runner}/lib", runner, "dev.pocketvlm.runner.Main", "--bundle", PLACE]
    words += [str(option) for option in OPTIONS] + ["--output", f"{ROOT}/.run/result.json"]
    assert device.path("/runner/arguments").read_text().splitlines() == words
    nothing_is_left(device)


def test_bench_with_a_picture_in_words(
    call: Call, device: AdbDevice, bundle: Path, result_of: dict[str, Any], tmp_path: Path
) -> None:  # fmt: skip
    from PIL import Image

    picture = tmp_path / "my screen.JPG"
    Image.new("RGB", (8, 4)).save(picture, "JPEG")
    result_of["results"] = {"image cold": result_of["results"]["text"], "image encoded": result_of["results"]["text"]}
    device.write("/runner/result.json", json.dumps(result_of))
    device.properties(
        {"ro.product.model": "sdk_gphone64", "ro.hardware": "ranchu", "ro.product.cpu.abilist": "x86_64,arm64-v8a"}
    )
    result = bench(call, bundle, "--image", picture, "--target", "fake-cpu")
    assert result.code == 0, result.err
    first, *_, last = result.out.splitlines()
    assert first == f"tiny, ort-cpu (onnxruntime) on sdk_gphone64 ({SERIAL}), 4 threads: median ± sd of 2 runs"
    assert last.startswith("an emulator's latency says nothing about a phone; load_ms")
    assert "runtime: kotlin 0.1.0, ONNX Runtime 1.29.0" in result.out
    assert "after: governor walt, thermal status light, battery 85%, charging" in result.out
    words = device.path("/runner/arguments").read_text().splitlines()
    assert words[words.index("--target") + 1] == "fake-cpu"
    sent = words[words.index("--image") + 1]
    assert device.path(sent).read_bytes() == picture.read_bytes()
    assert b"x86_64" in device.path(f"{ROOT}/.runner/lib/libonnxruntime.so").read_bytes()
    found = bench(call, bundle, "--image", picture, "--json").json
    assert (found["settings"]["image"], found["device"]["emulator"]) == ("my screen.JPG", True)
    assert bench(call, bundle, "--image", picture, "--markdown").out.count("| ttft_ms | 123.5 ± 1.5 | 123.5 ± 1.5 |") == 1


@pytest.mark.parametrize(
    ("mode", "pattern"),
    [
        ("crash", r"the benchmark crashed \(SIGSEGV\); its last words: Fatal signal 11 .*logcat"),
        ("killed", r"the benchmark crashed \(SIGKILL\).*memory is short"),
        ("java", "ended with exit code 1 and no result; its last words: java.lang.ClassNotFoundException"),
        ("truncated", "the benchmark's result is no JSON"),
        ("half", "the benchmark ended without a result"),
        ("none", "the benchmark ended without a result"),
    ],
)
def test_a_runner_that_fails(
    call: Call, device: AdbDevice, bundle: Path, result_of: dict[str, Any], mode: str, pattern: str
) -> None:  # fmt: skip
    set_mode(device, mode)
    result = bench(call, bundle)
    result.failed(5, pattern)
    assert result.out == ""
    nothing_is_left(device)


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"), [(2, "usage", 2), (3, "bad_bundle", 3), (5, "environment", 5), (1, "bug", 1)]
)
def test_what_the_runner_says_is_said_here(
    call: Call, device: AdbDevice, bundle: Path, result_of: dict[str, Any], code: int, kind: str, exit_code: int
) -> None:  # fmt: skip
    set_error(device, code, {"code": kind, "message": "no such thing", "hint": "do this"})
    result = bench(call, bundle, "--json")
    assert result.code == exit_code
    assert result.json == {"error": {"code": kind, "message": f"on the device {SERIAL}: no such thing", "hint": "do this"}}
    nothing_is_left(device)


def test_a_runner_that_hangs_is_ended(call: Call, device: AdbDevice, bundle: Path, result_of: dict[str, Any]) -> None:
    set_mode(device, "hang")
    with meanwhile(lambda: device.processes("bin/app_process"), lambda: None):
        result = bench(call, bundle, "--timeout", 2)
    result.failed(5, "did not end within 2 s, and was ended .give more by --timeout")
    nothing_is_left(device)


def test_a_device_that_goes_away_meanwhile(call: Call, device: AdbDevice, bundle: Path, result_of: dict[str, Any]) -> None:
    set_mode(device, "hang")
    with meanwhile(device.path("/runner/started").exists, device.kill):
        result = bench(call, bundle)
    result.failed(5, rf"device {SERIAL} (has gone|is offline) .waited for the benchmark to end")
    # The shell beside it has noticed that nobody listens any more.
    wait_for(lambda: not device.processes("dev.pocketvlm.runner.Main"), "the runner to end")
    device.restart()
    set_mode(device, "result")
    assert bench(call, bundle).code == 0
    nothing_is_left(device)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_the_runner(
    device: AdbDevice, bundle: Path, result_of: dict[str, Any], number: signal.Signals, code: int
) -> None:  # fmt: skip
    set_mode(device, "hang")
    command = [sys.executable, "-m", "pocketvlm.toolchain.cli", "bench", str(bundle), *DEVICE, *map(str, OPTIONS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)) as process:
        wait_for(device.path("/runner/started").exists, "the runner to start")
        # Not before the program waits for it.
        wait_for(lambda: device.path(f"{ROOT}/.run/pid").exists(), "the runner's number")
        process.send_signal(number)
        _, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err.decode().splitlines()[-1][:6]) == (code, "error:")
    nothing_is_left(device)


def test_two_at_a_time_do_not_disturb_each_other(
    call: Call, device: AdbDevice, bundle: Path, result_of: dict[str, Any]
) -> None:  # fmt: skip
    set_mode(device, "hang")
    command = [sys.executable, "-m", "pocketvlm.toolchain.cli", "bench", str(bundle), *DEVICE, *map(str, OPTIONS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)) as process:
        wait_for(lambda: device.path(f"{ROOT}/.run/pid").exists(), "the runner's number")
        wait_for(lambda: device.processes("bin/app_process"), "the runner")
        bench(call, bundle).failed(5, r"a benchmark is running already, as process \d+")
        assert device.processes("bin/app_process")
        process.terminate()
        process.communicate(timeout=LIMIT)
    nothing_is_left(device)


def test_what_is_wrong_here_is_told_before_anything_travels(
    call: Call, device: AdbDevice, bundle: Path, runner_files: tuple[Path, Path], tmp_path: Path
) -> None:  # fmt: skip
    bench(call, bundle, "--image", tmp_path / "none.png").failed(3, "none.png")
    bench(call, bundle, "--target", "qnn:SM8650").failed(2, "has no variant for 'qnn:SM8650'")
    bench(call, bundle, "--runner", tmp_path / "none.jar").failed(5, "none.jar: no such file .from --runner")
    bench(call, bundle, "--onnxruntime-android", tmp_path / "none.aar").failed(
        5, "mvn dependency:get .*onnxruntime-android:1.29.0"
    )
    assert not device.path(ROOT).exists()
