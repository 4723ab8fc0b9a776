"""Where an export keeps what the next one can take up, and what it tells about that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketvlm.errors import Cancelled, GateError
from pocketvlm.toolchain.kept import what_is_kept
from pocketvlm.toolchain.progress import Progress


def work_path(output: Path) -> Path:
    """Where an export keeps what the next one can take up if this one is interrupted."""
    return output.resolve().with_name(f".{output.resolve().name}.work")


@contextmanager
def telling_what_is_kept(output: Path, progress: Progress) -> Iterator[None]:
    """Around an export: tell what an earlier one has left, and, when this one fails, what it leaves and how to go on."""
    work = work_path(output)
    if kept := what_is_kept(work):
        progress.note(f"an earlier export has left in {work}: {kept}; what still fits is taken")
    try:
        yield
    except BaseException as error:
        if kept := what_is_kept(work):
            progress.note(f"kept in {work}: {kept}; {_how_to_go_on(error)}")
        elif work.is_dir():
            progress.note(f"left in {work}: files on the way; an export to the same place that succeeds removes them")
        raise


def _how_to_go_on(error: BaseException) -> str:
    """What the user does to go on after `error`: a gate that was missed is missed again with the same recipe."""
    if isinstance(error, KeyboardInterrupt | SystemExit | Cancelled):
        return "the same command goes on with it"
    if isinstance(error, GateError):
        return "after you have changed the recipe (-c), the same command goes on with it"
    return "when that is mended, or the recipe (-c) is changed, the same command goes on with it"
