"""Finding adb and the device, and what is said when one of them does not do as it should. adb plays recorded dialogues."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import EnvironmentFault, UsageError
from pocketvlm.toolchain.devices import adb as adb_module
from pocketvlm.toolchain.devices import adb_program, selection
from pocketvlm.toolchain.devices.adb import Adb, command, marked
from pocketvlm.toolchain.devices.adb_program import AdbProgram, find_adb
from pocketvlm.toolchain.devices.selection import choose_device

from .command_line import BundleAt, Call
from .scripted_adb import HEADER, ONE, VERSION, ScriptedAdb, ended, says

NOBODY = {"PATH": "/nonexistent"}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedAdb:
    """An adb on PATH, with one Pixel, and no adb server on this computer."""
    made = ScriptedAdb.at(tmp_path / "platform-tools")
    made.play()
    monkeypatch.setenv("PATH", made.environment["PATH"])
    monkeypatch.delenv("ADB_SERVER_SOCKET", raising=False)
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    return made


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Lets something answer at the port of the adb server; nothing at all for no bytes."""
    stop = threading.Event()
    threads, sockets = [], []

    def listen(answer: bytes) -> None:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server.getsockname()[1]))

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                assert connection.recv(100) == b"000chost:version"
                if answer:
                    connection.sendall(answer)
                stop.wait(10)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()

    yield listen
    stop.set()
    for thread in threads:
        thread.join(10)
    for server in sockets:
        server.close()


def fault(call: Callable[[], Any]) -> EnvironmentFault:
    with pytest.raises(EnvironmentFault) as caught:
        call()
    return caught.value


def quick(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    """Shorter limits, for what never comes."""
    for name, seconds in limits.items():
        for module in (adb_program, adb_module, selection):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, seconds)


# the program


def test_adb_is_found_on_the_path_and_in_the_sdk(scripted: ScriptedAdb, tmp_path: Path) -> None:
    found = find_adb()
    assert (found.path, found.release, found.protocol) == (scripted.folder / "adb", "35.0.2-12147458", 41)
    sdk = ScriptedAdb.at(tmp_path / "sdk" / "platform-tools")
    sdk.play()
    for variable in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        assert find_adb({**NOBODY, variable: str(tmp_path / "sdk")}).path == sdk.folder / "adb"
    # The one on PATH comes first, ANDROID_HOME before its old name.
    assert find_adb({"PATH": str(scripted.folder), "ANDROID_HOME": str(tmp_path / "sdk")}).path == scripted.folder / "adb"
    assert find_adb({**NOBODY, "ANDROID_HOME": "/gone", "ANDROID_SDK_ROOT": str(tmp_path / "sdk")}).path.parent == sdk.folder


def test_without_adb_the_places_are_named() -> None:
    error = fault(lambda: find_adb({**NOBODY, "ANDROID_HOME": "/opt/sdk"}))
    assert error.message == "adb is not there; looked in PATH, ANDROID_HOME (/opt/sdk/platform-tools)"
    assert "apt install adb" in error.hint
    assert "ANDROID_HOME" in error.hint


@pytest.mark.parametrize("told", ["", "Advanced Data Browser 3\n", "Android Debug Bridge version\n"])
def test_a_program_of_the_same_name(scripted: ScriptedAdb, told: str) -> None:
    scripted.play(("^version$", says(told)))
    assert "is no adb: asked for its version, it says" in fault(find_adb).message


def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    (tmp_path / "adb").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "adb").chmod(0o755)
    assert "cannot be started: Exec format error" in fault(lambda: find_adb({"PATH": str(tmp_path)})).message


# the server


@pytest.mark.parametrize(
    ("pattern", "limits", "told"),
    [
        ("^version$", {"ASK_S": 0.3}, "adb gave no answer for 0.3 s (waited for its version)"),
        ("^start-server$", {"START_S": 0.5}, "adb gave no answer for 0.5 s (waited for the adb server to start)"),
        ("^devices", {"ASK_S": 0.5}, "adb gave no answer for 0.5 s (waited for the list of devices)"),
    ],
)
def test_an_adb_that_hangs(
    scripted: ScriptedAdb, monkeypatch: pytest.MonkeyPatch, pattern: str, limits: dict[str, float], told: str
) -> None:
    scripted.play((pattern, says(seconds=60)))
    quick(monkeypatch, **limits)
    start = time.monotonic()
    error = fault(lambda: choose_device(None))
    assert time.monotonic() - start < 10
    assert error.message == told
    assert "adb kill-server" in error.hint
    assert not scripted.was_called("kill-server")


def test_a_server_that_hangs(
    scripted: ScriptedAdb, listening: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    listening(b"")
    monkeypatch.setattr(adb_program, "_PROBE_S", 0.3)
    error = fault(lambda: choose_device(None))
    assert error.message == (
        f"the adb server at 127.0.0.1:{os.environ['ANDROID_ADB_SERVER_PORT']} gave no answer for 0.3 s (waited for its version)"
    )
    assert not scripted.was_called("server")


def test_a_server_of_another_version_is_not_ended(scripted: ScriptedAdb, listening: Callable[[bytes], None]) -> None:
    """adb itself would end it."""
    listening(b"OKAY00040028")
    error = fault(lambda: choose_device(None))
    assert error.message == (f"the adb server that is running has version 40, {scripted.folder}/adb has 41 and would end it")
    assert scripted.calls == [["version"]]


def test_a_server_of_the_same_version_is_used(scripted: ScriptedAdb, listening: Callable[[bytes], None]) -> None:
    listening(b"OKAY00040029")
    assert choose_device(None).serial == "R5CT"


def test_something_else_at_the_port(scripted: ScriptedAdb, listening: Callable[[bytes], None]) -> None:
    listening(b"HTTP/1.1 400 Bad Request\r\n")
    assert "where the adb server should be, is none" in fault(lambda: choose_device(None)).message


def test_a_server_elsewhere_is_adbs_business(scripted: ScriptedAdb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADB_SERVER_SOCKET", "localfilesystem:/tmp/adb.socket")
    assert choose_device(None).serial == "R5CT"


def test_a_server_that_does_not_start(scripted: ScriptedAdb) -> None:
    told = "* daemon not running; starting now at tcp:5037\nADB server didn't ACK\n* failed to start daemon\n"
    scripted.play(("^start-server$", says(err=told, code=1)))
    assert fault(lambda: choose_device(None)).message == "the adb server does not start: ADB server didn't ACK"


# the device


@pytest.mark.parametrize(
    ("listed", "serial", "message", "hint"),
    [
        ("", None, "no device is connected", "USB debugging"),
        ("", "R5CT", "device R5CT is not connected, and no other is", "USB debugging"),
        (
            "R5CT  device product:a model:Pixel_9 device:a transport_id:1\n"
            "emulator-5554  device model:sdk_gphone64 transport_id:2\n",
            None,
            "2 devices are connected: R5CT (Pixel_9), emulator-5554 (sdk_gphone64)",
            "name one: --device adb:R5CT",
        ),
        (
            "R5CT\tunauthorized usb:1-1 transport_id:1\nX\tdevice\n",
            None,
            "2 devices are connected: R5CT (unauthorized), X",
            "name one",
        ),
        ("R5CT  unauthorized usb:1-1 transport_id:3\n", None, "R5CT is unauthorized", "accept its question"),
        ("R5CT  unauthorized usb:1-1 transport_id:3\nX device\n", "R5CT", "R5CT is unauthorized", "revoke"),
        (
            "0123456789ABCDEF  no permissions (missing udev rules? user is in the plugdev group); see "
            "[http://developer.android.com/tools/device.html] usb:3-2 transport_id:4\n",
            None,
            "device 0123456789ABCDEF: no permissions",
            "udev rules",
        ),
        ("????????????\tno permissions\n", None, "device ????????????: no permissions", "udev rules"),
        ("R5CT  recovery usb:1-1 product:a\n", None, "R5CT is recovery", "adb reboot"),
        ("R5CT  device\nR5CU  device\n", "R5CW", "device R5CW is not connected", "did you mean adb:R5C"),
        ("R5CT  device model:Pixel_9\n", "emulator-5554", "device emulator-5554 is not connected", "connected: R5CT (Pixel_9)"),
    ],
)
def test_a_device_that_cannot_be_used(
    scripted: ScriptedAdb, listed: str, serial: str | None, message: str, hint: str
) -> None:  # fmt: skip
    scripted.play(("^devices -l$", says(HEADER + listed)))
    error = fault(lambda: choose_device(serial))
    assert error.message == message
    assert hint in error.hint
    assert not scripted.was_called("shell|kill")


@pytest.mark.parametrize("state", ["offline", "connecting", "authorizing"])
def test_a_device_that_is_connecting_gets_some_time(scripted: ScriptedAdb, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    scripted.play(("^devices -l$", [says(f"{HEADER}R5CT {state}\n"), says(f"{HEADER}R5CT {state}\n"), says(ONE)]))
    assert choose_device(None).serial == "R5CT"
    scripted.play(("^devices -l$", says(f"{HEADER}R5CT {state}\n")))
    quick(monkeypatch, SETTLE_S=0.3)
    assert fault(lambda: choose_device("R5CT")).message == f"R5CT is {state} (waited 0.3 s)"


@pytest.mark.parametrize(
    "told", ["", "garbage\n", "\x00\xff\n", HEADER + "R5CT\n", HEADER + "R5CT flying usb:1\n", "R5CT device\n"]
)
def test_a_list_that_says_nothing(scripted: ScriptedAdb, told: str) -> None:
    scripted.play(("^devices -l$", says(told)))
    error = fault(lambda: choose_device(None))
    assert error.message.startswith("adb devices ")
    assert "`adb devices`" in error.hint


def test_a_list_that_fails(scripted: ScriptedAdb) -> None:
    scripted.play(("^devices -l$", says(err="adb: cannot connect to daemon\n", code=1)))
    assert fault(lambda: choose_device(None)).message == "adb cannot list devices: adb: cannot connect to daemon"


def test_news_of_the_server_are_no_devices(scripted: ScriptedAdb) -> None:
    scripted.play(
        ("^devices -l$", says("* daemon not running. starting it now on port 5037 *\n* daemon started successfully *\n" + ONE))
    )
    assert choose_device(None).serial == "R5CT"


@pytest.mark.parametrize("serial", ["-e", "a b", "$(reboot)", "a;b", "a\nb", "'", "x" * 300, "", " "])
def test_what_is_no_serial_does_not_reach_adb(scripted: ScriptedAdb, serial: str) -> None:
    with pytest.raises(UsageError, match="is no serial"):
        choose_device(serial)
    assert scripted.calls == []


@pytest.mark.parametrize(
    "serial", ["R5CT", "emulator-5554", "192.168.1.5:5555", "[fe80::1%eth0]:5555", "adb-R5-x._adb-tls-connect._tcp"]
)
def test_serials_as_adb_has_them(scripted: ScriptedAdb, serial: str) -> None:
    scripted.play(("^devices -l$", says(f"{HEADER}other device\n{serial} device\n")))
    assert choose_device(serial).serial == serial


# its shell


@pytest.fixture
def device(scripted: ScriptedAdb) -> Adb:
    return Adb(AdbProgram(scripted.folder / "adb", None, 41), "R5CT")


def test_a_command_has_an_end(scripted: ScriptedAdb, device: Adb) -> None:
    scripted.play(("shell", ended("some\nwords", 7, "a complaint\n")))
    answer = device.shell("true", "nothing")
    assert (answer.code, answer.out, answer.said) == (7, "some\nwords", "a complaint")
    assert scripted.calls[0][:3] == ["-s", "R5CT", "shell"]
    assert len(scripted.calls[0]) == 4


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (says(), "device R5CT has gone (waited for its name)"),
        (says("half an ans"), "device R5CT has gone (waited for its name)"),
        (says("all of it\npocketvlm-ended:0\nand more\n"), "device R5CT has gone (waited for its name)"),
        (says(err="error: device 'R5CT' not found\n", code=1), "device R5CT has gone (waited for its name)"),
        (says(err="error: closed\n", code=1), "device R5CT has gone (waited for its name)"),
        (says(err="adb: device offline\n", code=1), "device R5CT is offline (waited for its name)"),
        (
            says(err="error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\n", code=1),
            "device R5CT is unauthorized (waited for its name)",
        ),
        (
            says(err="error: protocol fault (no status)\n", code=1),
            "device R5CT: adb says: error: protocol fault (no status) (waited for its name)",
        ),
    ],
)
def test_a_device_that_goes_away(scripted: ScriptedAdb, device: Adb, answer: dict[str, Any], message: str) -> None:
    scripted.play(("shell", answer))
    error = fault(lambda: device.shell("getprop", "its name"))
    assert error.message == message
    assert error.hint


def test_a_command_that_hangs(scripted: ScriptedAdb, device: Adb) -> None:
    scripted.play(("shell", says(seconds=60)))
    error = fault(lambda: device.shell("getprop", "its name", limit=0.3))
    assert error.message == "adb gave no answer for 0.3 s (waited for its name, from R5CT)"


def test_a_marked_script_ends_with_its_code() -> None:
    """By a real shell: whatever the script does, its end shows."""
    for script, code in (("true", 0), ("exit 9", 9), ("echo a\nfalse", 1), ("kill -9 $(sh -c 'echo $PPID')", 137)):
        out = subprocess.run(["sh", "-c", marked(script)], capture_output=True, check=False, timeout=10).stdout
        assert out.endswith(f"\npocketvlm-ended:{code}\n".encode()), script


def test_words_stay_words() -> None:
    words = ["a b", "$(reboot)", "`reboot`", "'", '"', "a'b\"c", ";reboot", "*", "~", "", "ü", "-n", "\\", "a\nb", "$HOME"]
    program = "import sys, json; print(json.dumps(sys.argv[1:]))"
    line = command(["python3", "-c", program, *words])
    assert json.loads(subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=30).stdout) == words


# files


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("remote No space left on device", "R5CT:/data/x: no space left on the device"),
        ("remote couldn't create file: Read-only file system", "R5CT:/data/x: read-only file system"),
        ("remote couldn't create file: Permission denied", "R5CT:/data/x: permission denied"),
        ("remote secure_mkdirs failed: Operation not permitted", "R5CT:/data/x: operation not permitted"),
        ("remote couldn't create file: Is a directory", "R5CT:/data/x: remote couldn't create file: Is a directory"),
        ("something new", "R5CT:/data/x: something new"),
    ],
)
def test_a_file_that_is_refused(scripted: ScriptedAdb, device: Adb, tmp_path: Path, said: str, message: str) -> None:
    # Names of files can hold any words.
    source = tmp_path / "closed connection"
    source.write_text("x")
    out = f"adb: error: failed to copy '{source}' to '/data/x': {said}\n{source}: 0 files pushed, 0 skipped. 0.1 MB/s\n"
    scripted.play(("push", says(out, code=1)), ("shell", ended()))
    assert fault(lambda: device.push(source, "/data/x", print)).message == message


def test_a_file_on_its_way_to_a_device_that_goes_away(scripted: ScriptedAdb, device: Adb, tmp_path: Path) -> None:
    out = f"adb: error: failed to copy '{tmp_path}' to '/data/x': couldn't read from device\n"
    scripted.play(("push", says(out, code=1)), ("shell", says(err="error: device offline\n", code=1)))
    assert (
        fault(lambda: device.push(tmp_path, "/data/x", print)).message
        == "device R5CT is offline (waited for /data/x to arrive)"
    )


def test_a_push_is_watched(scripted: ScriptedAdb, device: Adb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb_module, "_POLL_S", 0.05)
    scripted.play(("push", says(seconds=1)), ("stat -c %s /data/x", [ended("30\n"), ended("30\n"), ended("70\n")]))
    arrived: list[int] = []
    device.push(tmp_path, "/data/x", arrived.append)
    assert arrived[:2] == [30, 40]
    assert sum(arrived) == 70


def test_a_push_that_is_stuck(scripted: ScriptedAdb, device: Adb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb_module, "_POLL_S", 0.05)
    quick(monkeypatch, STALL_S=0.4)
    scripted.play(("push", says(seconds=60)), ("stat", ended("30\n")))
    start = time.monotonic()
    error = fault(lambda: device.push(tmp_path, "/data/x", lambda _: None))
    assert time.monotonic() - start < 10
    assert error.message == "R5CT: nothing of /data/x arrived for 0.4 s"


# the command line


def test_the_command_line_says_it_in_one_line(scripted: ScriptedAdb, call: Call, bundle_at: BundleAt) -> None:
    scripted.play(("^devices -l$", says(HEADER + "R5CT unauthorized\n")))
    bundle = bundle_at()
    call("push", bundle, "--device", "adb").failed(5, "R5CT is unauthorized .unlock the device")
    result = call("push", bundle, "--device", "adb:R5CT", "--json")
    assert (result.code, result.json["error"]["code"]) == (5, "environment")
    call("push", bundle, "--device", "adb:$(reboot)").failed(2, "is no serial of a device")


def test_doctor_reports_a_device_that_cannot_be_reached(scripted: ScriptedAdb, call: Call) -> None:
    scripted.play(("^devices -l$", says(HEADER)))
    result = call("doctor", "--device", "adb", "--json")
    assert result.code == 5
    checks = {check["name"]: check for check in result.json["device"]["checks"]}
    assert checks["adb"]["found"] == f"35.0.2-12147458, {scripted.folder}/adb"
    assert checks["device"]["found"] == "no device is connected"
    assert "device: no device is connected, needed is one that answers" in result.err


@pytest.mark.parametrize("module", ["doctor", "bench", "push"])
def test_a_command_can_say_which_package_is_missing(module: str) -> None:
    code = (
        f"import sys; import pocketvlm.toolchain.commands.{module};"
        "sys.exit(str({'numpy', 'onnxruntime', 'tokenizers', 'PIL'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr.strip()) == ("", "")


def test_doctor_without_adb(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)
    result = call("doctor", "--device", "adb", "--json")
    assert result.json["device"]["checks"][0]["found"] == "adb is not there; looked in PATH"
    assert [check["name"] for check in result.json["device"]["checks"]] == [
        "adb", "runtime for Android", "ONNX Runtime for Android"
    ]  # fmt: skip
    assert VERSION not in result.out
