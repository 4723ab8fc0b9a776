"""A task: questions about images whose answers are known. Says what quantization costs where it counts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import RecipeError

MAX_TASK_BYTES = 16 * 1024 * 1024
_FORM = 'write {"image.png": [["question", "answer"], ...], ...}, images beside the file'


@dataclass(frozen=True, slots=True)
class TaskQuestion:
    """One question. An answer is right when it equals `answer`, spaces at its ends aside."""

    image: Path
    question: str
    answer: str


def load_task(path: Path) -> tuple[TaskQuestion, ...]:
    """Read a task file: a JSON object from image file (beside it) to a list of [question, answer].

    Raises:
        RecipeError: it cannot be read, has another form, holds no question, or names an image that is not there.
    """
    if path.exists() and not path.is_file():
        raise RecipeError(f"task {path}: not a file", "check the path")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TASK_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"task {path}: cannot be read: {error.strerror}", "check the path") from error
    if len(content) > MAX_TASK_BYTES:
        raise RecipeError(f"task {path}: larger than {MAX_TASK_BYTES} bytes", "take fewer questions")
    try:
        raw = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise RecipeError(f"task {path}: not valid JSON", _FORM) from None
    found = []
    for name, pairs in raw.items() if isinstance(raw, dict) else ():
        image = path.parent / name
        if not image.is_file():
            raise RecipeError(f"task {path}: no such image: {image}", _FORM)
        for pair in pairs if isinstance(pairs, list) else [None]:
            if not isinstance(pair, list) or [type(item) for item in pair] != [str, str] or not pair[0].strip():
                raise RecipeError(f"task {path}: a question about {name} is not [question, answer]", _FORM)
            found.append(TaskQuestion(image, *pair))
    if not found:
        raise RecipeError(f"task {path}: holds no question", _FORM)
    return tuple(found)
