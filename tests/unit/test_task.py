"""Task files: what is read, and what is refused with one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pocketvlm.errors import RecipeError
from pocketvlm.toolchain.task import MAX_TASK_BYTES, TaskQuestion, load_task


def test_questions_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        (tmp_path / name).write_bytes(b"")
    file = tmp_path / "task.json"
    file.write_text(json.dumps({"b.png": [["What?", "That"], ["Who?", ""]], "a.png": [["Where?", "There"]]}))
    b, a = tmp_path / "b.png", tmp_path / "a.png"
    assert load_task(file) == (
        TaskQuestion(b, "What?", "That"),
        TaskQuestion(b, "Who?", ""),
        TaskQuestion(a, "Where?", "There"),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b" " * (MAX_TASK_BYTES + 1), "larger than"),
        (b"{}", "holds no question"),
        (b"[]", "holds no question"),
        (b'{"a.png": []}', "holds no question"),
        (b'{"gone.png": [["a", "b"]]}', r"no such image: .*gone\.png"),
        (b'{"a.png": {"a": "b"}}', "is not .question, answer."),
        (b'{"a.png": [["a"]]}', "is not .question, answer."),
        (b'{"a.png": [["a", 1]]}', "is not .question, answer."),
        (b'{"a.png": [[" ", "b"]]}', "is not .question, answer."),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "task.json").write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_task(tmp_path / "task.json")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_task(tmp_path / "absent.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(RecipeError, match="not a file"):
        load_task(tmp_path / "pipe.json")
