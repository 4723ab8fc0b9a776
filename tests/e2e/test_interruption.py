"""Exports that end before they are done: Ctrl-C, SIGTERM, kill -9, a full disk. The old bundle stays, and nothing else does."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.toolchain.progress import RichProgress

from .conftest import Call, contents

Exported = Callable[[str], Path]
ASK = ["What is in this picture?", "--max-new-tokens", 4]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def siblings(bundle: Path) -> list[str]:
    return sorted(path.name for path in bundle.parent.iterdir())


@contextlib.contextmanager
def watched_progress(at: Callable[[int], None]) -> Iterator[list[str]]:
    """Call `at(n)` at the n-th time that the export tells its progress."""
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("estimate", "stage", "advance", "note"):
            original = getattr(RichProgress, name)

            def watched(self: RichProgress, *values: Any, _name: str = name, _original: Any = original) -> None:
                seen.append(_name)
                number = len(seen)
                _original(self, *values)
                at(number)

            patch.setattr(RichProgress, name, watched)
        yield seen


def test_ctrl_c_at_every_part_of_an_export(call: Call, pristine: Path, recipe: Path, bundle: Path) -> None:
    """A signal of the system to this very process, wherever the export tells its progress."""
    with watched_progress(lambda number: None) as told:
        arguments = ["export", pristine, "-o", bundle, "-c", recipe]
        assert call(*arguments).code == 0
    before = contents(bundle)
    last = len(told)
    assert last > 12
    for moment in sorted({1, 2, last - 1, last, *range(3, last, last // 5)}):

        def interrupt(number: int, moment: int = moment) -> None:
            if number == moment:
                signal.raise_signal(signal.SIGINT)

        with watched_progress(interrupt):
            result = call(*arguments, "--chunk-size", 64)
        assert result.code == 130, moment
        assert result.err.splitlines()[-1] == "error: interrupted"
        assert "Traceback" not in result.err
        assert contents(bundle) == before
        assert siblings(bundle) == [bundle.name]
    assert call("run", bundle, *ASK).code == 0


def start(checkpoint: Path, bundle: Path, recipe: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pocketvlm.toolchain.cli", "export", str(checkpoint), "-o", str(bundle), "-c", str(recipe)]
    command += options
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True)


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stderr is not None
    for told in process.stderr:
        if told.startswith(line):
            return
    pytest.fail(f"the export ended before {line!r}")


def check_ended(process: subprocess.Popen[str], code: int, told: str) -> str:
    """The export ends with that code and word; what it wrote since `wait_for`."""
    assert process.stderr is not None
    rest = process.stderr.read()
    process.wait()
    assert process.returncode == code, rest
    assert rest.splitlines()[-1] == f"error: {told}"
    assert "Traceback" not in rest
    return rest


@pytest.mark.parametrize("line", ["needs about", "writing decoder"])
def test_ctrl_c_in_a_terminal(call: Call, pristine: Path, recipe: Path, bundle: Path, line: str) -> None:
    """There every process of the foreground gets the signal, those that the export has started as well."""
    before = contents(bundle)
    with start(pristine, bundle, recipe) as process:
        wait_for(process, line)
        os.killpg(process.pid, signal.SIGINT)
        check_ended(process, 130, "interrupted")
    assert contents(bundle) == before
    assert siblings(bundle) == [bundle.name]


@pytest.mark.parametrize("line", ["needs about", "writing decoder", "verify"])
def test_sigterm_leaves_nothing_either(call: Call, pristine: Path, recipe: Path, bundle: Path, line: str) -> None:
    """What a service manager, a container's end or `timeout` sends: to the one process that was started."""
    before = contents(bundle)
    with start(pristine, bundle, recipe) as process:
        wait_for(process, line)
        process.terminate()
        check_ended(process, 143, "terminated")
    assert contents(bundle) == before
    assert siblings(bundle) == [bundle.name]


def test_sigterm_leaves_what_was_compiled_for_the_next_export(call: Call, pristine: Path, recipe: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    with start(pristine, place / "bundle", recipe, "--target", "qnn:SM8750") as process:
        wait_for(process, "connector: ")
        process.terminate()
        rest = check_ended(process, 143, "terminated")
    left = re.search(
        r"^kept in \S+/\.bundle\.work: (\d+) compiled parts; the same command goes on with it$", rest, re.MULTILINE
    )
    assert left is not None, rest
    assert siblings(place / "bundle") == [".bundle.work"]
    again = call("export", pristine, "-o", place / "bundle", "-c", recipe, "--target", "qnn:SM8750")
    assert again.code == 0
    assert f"going on: {left[1]} of 4 parts had been compiled for SM8750 before\n" in again.err
    assert siblings(place / "bundle") == ["bundle"]


def test_kill_9_leaves_the_old_bundle_and_the_next_export_clears_up(
    call: Call, pristine: Path, recipe: Path, bundle: Path
) -> None:
    before = contents(bundle)
    for number, line in enumerate(["calibrate", "writing decoder", "verify"], 1):
        with start(pristine, bundle, recipe) as process:
            wait_for(process, line)
            os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert contents(bundle) == before
        left = [name for name in siblings(bundle) if ".partial-" in name]
        # Each export clears what the one before it has left.
        assert len(left) == 1, f"after {number} kills: {left}"
    assert call("run", bundle, *ASK).code == 0
    assert call("export", pristine, "-o", bundle, "-c", recipe, "--precision", "fp32").code == 0
    assert siblings(bundle) == [bundle.name]
    assert contents(bundle) != before
    assert call("verify", bundle).code == 0


def test_kill_9_of_a_first_export_leaves_no_bundle(call: Call, pristine: Path, recipe: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    with start(pristine, place / "bundle", recipe) as process:
        wait_for(process, "writing decoder")
        os.killpg(process.pid, signal.SIGSTOP)
        # As long as it lives nobody else writes there, or takes what it has written for left over.
        call("export", pristine, "-o", place / "bundle", "-c", recipe).failed(5, "another export is writing this bundle")
        assert [name for name in siblings(place / "bundle") if ".partial-" in name]
        os.killpg(process.pid, signal.SIGKILL)
    call("run", place / "bundle", "hello").failed(3, "no such bundle")
    assert call("export", pristine, "-o", place / "bundle", "-c", recipe).code == 0
    assert siblings(place / "bundle") == ["bundle"]


@contextlib.contextmanager
def disk(directory: Path) -> Iterator[Callable[[int], None]]:
    """A filesystem of 2 MiB at `directory`, and a function that leaves so many bytes of it free.

    Where mounting is not allowed, that function limits the size of any file instead, so that some of a bundle's fit.
    """
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)]
    if shutil.which("mount") and subprocess.run(mount, check=False, capture_output=True).returncode == 0:
        ballast = directory / "ballast"

        def leave(free: int) -> None:
            ballast.unlink(missing_ok=True)
            ballast.write_bytes(bytes(shutil.disk_usage(directory).free - free))

        try:
            yield leave
        finally:
            subprocess.run(["umount", str(directory)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda free: resource.setrlimit(resource.RLIMIT_FSIZE, (min(free // 2, 150_000), hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(call: Call, pristine: Path, recipe: Path, exported: Exported, tmp_path: Path) -> None:
    """Too small for what was estimated; full while the vision, the decoder, the report is written."""
    place = tmp_path / "small"
    place.mkdir()
    needed = sum(path.stat().st_size for path in exported("paper").rglob("*") if path.is_file())
    with disk(place) as leave:
        for output in (place / "first", shutil.copytree(exported("paper"), place / "bundle")):
            before = contents(output) if output.exists() else {}
            for free in (100_000, needed // 2, needed - 100_000, needed - 20_000):
                leave(free)
                result = call("export", pristine, "-o", output, "-c", recipe)
                result.failed(5, r"small: not enough disk space: the bundle needs about \d+ bytes, \d+ bytes are free \(free ")
                assert (contents(output) if output.exists() else {}) == before
                assert not [name for name in siblings(output) if name.startswith(".")]
        assert call("run", place / "bundle", *ASK).code == 0
