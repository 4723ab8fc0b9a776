"""What is told of a compiler that fails: the worker here is a few lines that fail in the way that is wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketvlm.errors import EnvironmentFault, GateError
from pocketvlm.toolchain.backends.qnn import compiler

PARTS = "set qnn.layers_per_part lower"


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        ("import os; os.kill(os.getpid(), 11)", r"\(ended by signal 11\): it said nothing", PARTS),
        ("import os; print('half way', flush=True); os.kill(os.getpid(), 9)", r"\(ended by signal 9\): half way", PARTS),
        ("raise MemoryError", r"\(exit code 1\): MemoryError", PARTS),
        ("import sys; sys.exit('terminate: std::bad_alloc')", r"\(exit code 1\): .*bad_alloc", PARTS),
        ("raise OSError(28, 'No space left on device')", r"No space left on device", "free some space"),
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
    log = Path(caught.value.hint.removeprefix("all that it said is in "))
    assert "all of it\nTraceback" in log.read_text()


def test_operators_that_do_not_land_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{{ name: y{number}.value_node, type: Mish }}" for number in range(7)]
    lines = ["{ name: QNNExecutionProvider_1, type: QNNExecutionProvider_1 }", *names, "std::bad_alloc"]
    with pytest.raises(GateError, match=r"decoder.0: Mish 'y0', .*Mish 'y4' and 2 more cannot run on the NPU"):
        fail(tmp_path, monkeypatch, f"import sys; sys.exit({'; '.join(lines)!r})")


def fail(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Run `code` instead of the compiler."""
    (folder / "failing_worker.py").write_text(code)
    monkeypatch.setattr(compiler, "_WORKER", "failing_worker")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    compiler.run_worker(folder, {"work": "compile"}, "decoder.0", 1 << 40)
