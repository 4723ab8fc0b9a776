"""How long work tells what it is doing. The answer never goes this way: progress is for stderr."""

from __future__ import annotations

from types import TracebackType
from typing import Literal, Protocol

from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBars
from rich.text import Text

from pocketvlm.toolchain.console import Console

Unit = Literal["steps", "bytes"]


class Progress(Protocol):
    """What the toolchain reports to."""

    def estimate(self, ram_bytes: int, disk_bytes: int, seconds: float) -> None:
        """What the work will take, told before it starts."""

    def stage(self, name: str, total: int, unit: Unit = "steps") -> None:
        """A part of the work with `total` steps or bytes begins; the part before it has ended."""

    def advance(self, n: int = 1) -> None:
        """`n` more steps of the current part are done."""

    def note(self, text: str) -> None:
        """One line that stays."""


class SilentProgress:
    """Tells nobody."""

    def estimate(self, ram_bytes: int, disk_bytes: int, seconds: float) -> None:
        pass

    def stage(self, name: str, total: int, unit: Unit = "steps") -> None:
        pass

    def advance(self, n: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class _DoneColumn(MofNCompleteColumn):
    """How much is done: "3/12", or "1.2 GB/3.4 GB"."""

    def render(self, task: Task) -> Text:
        if task.fields.get("unit") != "bytes":
            return super().render(task)
        return Text(f"{decimal(int(task.completed))}/{decimal(int(task.total or 0))}", style="progress.download")


class RichProgress:
    """Bars on a terminal, plain lines elsewhere. A context manager: the bars end with it.

    Args:
        console: where to write; stderr unless given.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = RichBars(
            TextColumn("{task.description}"),
            BarColumn(),
            _DoneColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._finish()
        self._bars.stop()

    def estimate(self, ram_bytes: int, disk_bytes: int, seconds: float) -> None:
        self.note(
            f"needs about {decimal(ram_bytes)} of memory, {decimal(disk_bytes)} of disk, {_duration(seconds)} on two idle cores"
        )

    def stage(self, name: str, total: int, unit: Unit = "steps") -> None:
        self._finish()
        if not self._console.is_terminal:
            self.note(name)
        self._task = self._bars.add_task(escape(name), total=total, unit=unit)

    def advance(self, n: int = 1) -> None:
        if self._task is not None:
            self._bars.advance(self._task, n)

    def note(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)

    def _finish(self) -> None:
        """Fill the bar of the part that has ended: totals are estimates."""
        if self._task is not None:
            total = self._bars.tasks[self._task].total
            self._bars.update(self._task, completed=total)
        self._task = None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"
