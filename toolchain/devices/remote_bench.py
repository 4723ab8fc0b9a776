"""Runs the Kotlin runtime's benchmark on an Android device and reads what it found. docs/devices.md has the contract.

Whatever happens, nothing keeps running there: the runtime's process ends when it is told to, when our connection to the device
ends (a shell beside it waits for that), or when the next benchmark finds it.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from shlex import quote
from typing import IO, Any

from pocketvlm import errors
from pocketvlm.errors import EnvironmentFault, PocketVLMError, SettingError
from pocketvlm.runtime.strict_json import decode
from pocketvlm.toolchain.devices.adb import Adb, Answer, command, marked
from pocketvlm.toolchain.devices.adb_program import Done
from pocketvlm.toolchain.devices.report import BenchJob, BenchReport
from pocketvlm.toolchain.devices.runner_files import MAIN, RUNNER_NAME
from pocketvlm.toolchain.progress import Progress

# Seconds: loading, and one question of one case. A phone takes a small part of that.
_LOAD_S, _QUESTION_S = 300.0, 120.0
_MAX_RESULT_BYTES = 4 << 20
_MAX_OUTPUT_BYTES = 1 << 20
_MAX_LINE = 500
# Lines of progress that nobody has shown yet; of a flood the rest is left out.
_MAX_WAITING = 1000
_POLL_S = 0.5
_RESULT, _PID = "result.json", "pid"
_LOGCAT = "`adb -s {serial} logcat -d` shows what Android says about it"
_REBUILD = "the runner is of another version than this program, or damaged: build it again"


@dataclass(frozen=True, slots=True)
class Place:
    """Folders on the device.

    Attributes:
        runner: of the jar and, as "lib", of the libraries.
        run: for what one run leaves: its process's number and its result.
    """

    runner: str
    run: str


def default_timeout(job: BenchJob) -> float:
    """Seconds that a run may take, unless the user says otherwise: five minutes to load, two for each question."""
    return _LOAD_S + _QUESTION_S * len(job.cases) * (job.settings.repetitions + 1)


def runner_command(place: Place, bundle: str, image: str | None, job: BenchJob) -> str:
    """The command line of the runtime, for the device's shell."""
    settings = job.settings
    options: list[tuple[str, object]] = [
        ("--bundle", bundle),
        ("--image", image),
        ("--prompt-tokens", settings.prompt_tokens),
        ("--new-tokens", settings.new_tokens),
        ("--repetitions", settings.repetitions),
        ("--threads", settings.threads),
        ("--target", job.target),
        ("--output", f"{place.run}/{_RESULT}"),
    ]
    given = [word for name, value in options if value is not None for word in (name, str(value))]
    start = ["app_process", f"-Djava.library.path={place.runner}/lib", place.runner, MAIN]
    return f"CLASSPATH={quote(f'{place.runner}/{RUNNER_NAME}')} {command([*start, *given])}"


def check_idle(adb: Adb, place: Place) -> None:
    """Refuse to disturb a benchmark that is running on the device.

    Raises:
        EnvironmentFault: with the number of its process.
    """
    script = f"mkdir -p {quote(place.run)} && cd {quote(place.run)} || exit\n{_ALIVE}\nalive && echo $pid; true"
    done = adb.shell(script, "whether a benchmark is running")
    if done.code:
        adb.refused(done.said, place.run)
    if pid := done.out.strip():
        raise EnvironmentFault(
            f"device {adb.serial}: a benchmark is running already, as process {pid}",
            f"wait for it, or end it: adb -s {adb.serial} shell kill -9 {pid}",
        )


def run_remote(adb: Adb, place: Place, bundle: str, image: str | None, job: BenchJob, progress: Progress) -> BenchReport:
    """Run the benchmark and read its result.

    Args:
        bundle, image: where they are on the device.

    Raises:
        PocketVLMError: what the runtime says, "on the device".
        EnvironmentFault: it crashed, gave no result or one that cannot be read, took too long, or the device has gone.
    """
    limit = job.timeout_s or default_timeout(job)
    try:
        answer = _run(adb, _script(place, runner_command(place, bundle, image, job)), limit, progress)
        return _result(adb, place, answer, job)
    finally:
        _clean(adb, place)


# `pid` and `alive`: a number may be another process's by now, so its command line has to be ours.
_ALIVE = f"""
pid=$(cat {_PID} 2>/dev/null)
alive() {{ case $pid in ''|*[!0-9]*) return 1;; esac; grep -q {quote(MAIN)} "/proc/$pid/cmdline" 2>/dev/null; }}
"""


def _script(place: Place, line: str) -> str:
    # The shell reads our end of the connection for as long as it lasts, and ends the runtime then. What it waits with is no
    # program of its own, so that nothing is left when it is told to stop.
    return f"""
cd {quote(place.run)} || exit
rm -f {_RESULT} {_RESULT}.part {_PID}
exec 3<&0
{line} </dev/null 3<&- &
runner=$!
echo $runner > {_PID}
( while read -r line; do :; done; kill -9 $runner ) <&3 >/dev/null 2>&1 &
watcher=$!
exec 3<&-
wait $runner 2>/dev/null
code=$?
kill $watcher 2>/dev/null
exit $code
"""


def _clean(adb: Adb, place: Place) -> None:
    """End what is still running, and remove what a run leaves. A device that has gone does that when it notices."""
    script = f"""
cd {quote(place.run)} || exit
{_ALIVE}
n=0
while alive && [ $n -lt 50 ]; do kill -9 $pid; sleep 0.1; n=$((n+1)); done
rm -f {_RESULT} {_RESULT}.part {_PID}
"""
    try:
        adb.shell(script, "the benchmark to end")
    except EnvironmentFault:
        return


class _Output:
    """Reads a stream on a thread of its own: its last part is kept, its lines are told."""

    def __init__(self, stream: IO[bytes], lines: queue.Queue[str] | None = None) -> None:
        self._stream = stream
        self._lines = lines
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def end(self) -> bytes:
        """What was read, when the stream has ended; or soon, if somebody else still holds it open."""
        self._thread.join(_POLL_S)
        return bytes(self._kept)

    def _read(self) -> None:
        while part := self._stream.readline(_MAX_LINE):
            self._kept += part
            # Only the end of a flood is of use.
            del self._kept[: max(0, len(self._kept) - _MAX_OUTPUT_BYTES)]
            if self._lines is not None:
                with contextlib.suppress(queue.Full):
                    self._lines.put_nowait(part.decode(errors="replace").rstrip())
        self._stream.close()


def _run(adb: Adb, script: str, limit: float, progress: Progress) -> Answer:
    """Run a script whose complaints are progress, with standard input open to its end."""
    what = "the benchmark to end"
    arguments = [str(adb.program.path), *adb.arguments("shell", marked(script))]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    lines: queue.Queue[str] = queue.Queue(_MAX_WAITING)
    output, complaints = _Output(process.stdout), _Output(process.stderr, lines)
    until = time.monotonic() + limit
    try:
        while process.poll() is None:
            left = until - time.monotonic()
            if left <= 0:
                raise EnvironmentFault(
                    f"device {adb.serial}: the benchmark did not end within {limit:g} s, and was ended",
                    "give more by --timeout",
                )
            try:
                _tell(progress, lines.get(timeout=min(left, _POLL_S)))
            except queue.Empty:
                continue
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        out, err = output.end(), complaints.end()
    while not lines.empty():
        _tell(progress, lines.get())
    return adb.answer(Done(process.returncode, out, err.decode(errors="replace")), what)


def _tell(progress: Progress, line: str) -> None:
    # An error comes once more on stdout, as an object, and is told as this command's own.
    if line and not line.startswith("error: "):
        progress.note("".join(char if char.isprintable() else "?" for char in line))


def _result(adb: Adb, place: Place, answer: Answer, job: BenchJob) -> BenchReport:
    if answer.code:
        raise _failure(adb.serial, answer)
    path = quote(f"{place.run}/{_RESULT}")
    script = f"[ -f {path} ] || exit 9; [ $(wc -c < {path}) -le {_MAX_RESULT_BYTES} ] || exit 8; cat {path}"
    read = adb.shell(script, "the result")
    if read.code == 9:
        raise EnvironmentFault(f"device {adb.serial}: the benchmark ended without a result", _REBUILD)
    if read.code == 8:
        raise EnvironmentFault(f"device {adb.serial}: the result has more than {_MAX_RESULT_BYTES >> 20} MiB", _REBUILD)
    if read.code:
        raise EnvironmentFault(f"device {adb.serial}: the result cannot be read: {read.said}", "run it again")
    return _parse(adb.serial, read.raw, job)


def _parse(serial: str, content: bytes, job: BenchJob) -> BenchReport:
    where = f"device {serial}: the benchmark's result"
    try:
        raw = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise EnvironmentFault(f"{where} is no JSON: {error}", _REBUILD) from None
    known = [field.name for field in fields(BenchReport) if field.name not in ("device", "remarks")]
    if not isinstance(raw, dict) or sorted(raw) != sorted(known):
        told = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
        raise EnvironmentFault(f"{where} has {told}, and must have {sorted(known)}", _REBUILD)
    try:
        report: BenchReport = decode(BenchReport, raw, "result", EnvironmentFault)
    except EnvironmentFault as error:
        raise EnvironmentFault(f"{where}: {error.message}", error.hint or _REBUILD) from None
    if report.runtime is None:
        raise EnvironmentFault(f"{where} does not say who answered", _REBUILD)
    if sorted(report.results) != sorted(job.cases):
        raise EnvironmentFault(f"{where} has cases {sorted(report.results)}, asked were {sorted(job.cases)}", _REBUILD)
    for name, figures in report.results.items():
        for figure, values in figures.items():
            if sorted(values) != ["median", "sd"] or values["median"] is None:
                raise EnvironmentFault(f"{where}: {name}.{figure} has no median and sd", _REBUILD)
    return report


def _failure(serial: str, answer: Answer) -> PocketVLMError:
    """What the runtime says in its last line, or else how it ended."""
    told = _told(answer.out.splitlines())
    if told is not None:
        return _as_ours(serial, *told)
    number = answer.code - 128
    said = f"; its last words: {answer.said}" if answer.err.strip() or answer.out.strip() else ""
    if number in set(signal.Signals):
        hint = _LOGCAT.format(serial=serial)
        if number == signal.SIGKILL:
            hint = f"Android ends programs when memory is short: close apps, or take a smaller bundle; {hint}"
        return EnvironmentFault(f"device {serial}: the benchmark crashed ({signal.Signals(number).name}){said}", hint)
    return EnvironmentFault(
        f"device {serial}: the benchmark ended with exit code {answer.code} and no result{said}", _LOGCAT.format(serial=serial)
    )


def _told(lines: Sequence[str]) -> tuple[str, str, str] | None:
    """Code, message and hint of the last line that is an error object."""
    for line in reversed(lines):
        try:
            error: Any = json.loads(line).get("error")
            code, message, hint = error["code"], error["message"], error.get("hint") or ""
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
            continue
        if all(isinstance(item, str) for item in (code, message, hint)):
            return code, message, hint
    return None


def _as_ours(serial: str, code: str, message: str, hint: str) -> PocketVLMError:
    """The exception of a code, as if it had been raised here."""
    kinds = {kind.code: kind for kind in reversed(_tree(PocketVLMError)) if kind not in (PocketVLMError, SettingError)}
    told = f"on the device {serial}: {message}"
    if code in kinds:
        return kinds[code](told, hint)
    error = PocketVLMError(told, hint or "this is a bug of PocketVLM's runner: please report it")
    error.code = "bug"
    return error


def _tree(kind: type[PocketVLMError]) -> list[type[PocketVLMError]]:
    own = [kind] if kind.__module__ == errors.__name__ else []
    return own + [item for child in kind.__subclasses__() for item in _tree(child)]
