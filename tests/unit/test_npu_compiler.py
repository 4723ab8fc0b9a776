"""What is told of a compiler that fails: the worker here is a few lines that fail in the way that is wanted."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pocketvlm.errors import EnvironmentFault, GateError
from pocketvlm.toolchain.backends.qnn import compiler
from pocketvlm.toolchain.backends.qnn.socs import SOCS

PARTS = "set qnn.layers_per_part lower"
DOCTOR = "`pocketvlm doctor --target qnn:SM8650` tells whether the compiler works here; "


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        # What a library does that is cut off, or a compiler that wants memory.
        ("import os; os.kill(os.getpid(), 7)", r"\(ended by signal 7\): it said nothing", f"{DOCTOR}if it does, {PARTS}"),
        ("import os; print('half way', flush=True); os.kill(os.getpid(), 9)", r"\(ended by signal 9\): half way", PARTS),
        ("raise MemoryError", r"\(exit code 1\): MemoryError", PARTS),
        ("import sys; sys.exit('terminate: std::bad_alloc')", r"\(exit code 1\): .*bad_alloc", PARTS),
        ("import sys; sys.exit('lost\\n # LIBNATIVE: No configuration\\n\\n')", r"\(exit code 1\): lost ", f"{DOCTOR}all that"),
    ],
)
def test_a_failure_is_told_with_what_may_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str, hint: str
) -> None:
    with pytest.raises(EnvironmentFault, match=f"^decoder.0: the compiler failed .*{message}") as caught:
        fail(tmp_path, monkeypatch, code)
    assert caught.value.hint.startswith(hint)


def test_of_anything_else_the_compilers_own_words_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        EnvironmentFault, match=r"decoder.0: the compiler failed \(exit code 1\): ValueError: no such chip"
    ) as caught:
        fail(tmp_path, monkeypatch, "print('all of it', flush=True); raise ValueError('no such chip')")
    log = Path(caught.value.hint.removeprefix(f"{DOCTOR}all that it said is in "))
    assert "all of it\nTraceback" in log.read_text()


def test_operators_that_do_not_land_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{{ name: y{number}.value_node, type: Mish }}" for number in range(7)]
    lines = ["{ name: QNNExecutionProvider_1, type: QNNExecutionProvider_1 }", *names, "std::bad_alloc"]
    with pytest.raises(GateError, match=r"decoder.0: Mish 'y0', .*Mish 'y4' and 2 more cannot run on the NPU"):
        fail(tmp_path, monkeypatch, f"import sys; sys.exit({'; '.join(lines)!r})")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_not_the_compilers_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        fail(tmp_path, monkeypatch, f"raise RuntimeError('write: {os.strerror(number)}')")
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path))


def test_a_full_disk_on_which_nothing_can_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a result nor a log fits, so there is only the disk itself to ask."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True, check=False
    ).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        code = "data = open('out.bin', 'wb'); [data.write(bytes(4096)) and data.flush() for _ in range(1000)]"
        with pytest.raises(OSError, match="No space left on device") as caught:
            fail(disk, monkeypatch, code, tmp_path)
        assert (disk / "log.txt").stat().st_size == 0
        assert caught.value.filename == str(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_worker_that_says_nothing_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same wherever nothing can be mounted: the disk says that it is full."""
    full = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr("pocketvlm.toolchain.disk.shutil.disk_usage", lambda folder: full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        fail(tmp_path, monkeypatch, "raise SystemExit(1)")
    assert caught.value.filename == str(tmp_path)


def fail(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, source: Path | None = None) -> None:
    """Run `code`, which is put into `source`, instead of the compiler."""
    source = source or folder
    (source / "failing_worker.py").write_text(code)
    monkeypatch.setattr(compiler, "_WORKER", "failing_worker")
    monkeypatch.setenv("PYTHONPATH", str(source))
    options = compiler.compile_options(SOCS["SM8650"], None)
    compiler.run_worker(folder, {"work": "compile", "options": options}, "decoder.0", 1 << 40)
