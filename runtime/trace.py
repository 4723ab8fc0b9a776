"""What ran when, on which thread: Chrome trace JSON, which Perfetto (ui.perfetto.dev) opens."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

from pocketvlm.errors import EnvironmentFault

_NO_SPAN: AbstractContextManager[None] = nullcontext()


class Trace:
    """Collects spans from any thread.

    Args:
        enabled: False makes `span` do next to nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._start = time.perf_counter_ns()
        self._events: list[dict[str, Any]] = []
        self._threads: dict[tuple[int, str], int] = {}
        self._rows = itertools.count(1)

    def span(self, name: str, **arguments: Any) -> AbstractContextManager[None]:
        """A context manager that records how long its body ran; `arguments` (JSON values) are shown with it."""
        return _Span(self, name, arguments) if self.enabled else _NO_SPAN

    @property
    def events(self) -> list[dict[str, Any]]:
        """The finished spans so far, as Chrome "X" events: name, ts and dur in microseconds, pid, tid, args."""
        return list(self._events)

    def to_json(self) -> dict[str, Any]:
        """The trace in Chrome's object format, process and thread names included."""
        process = os.getpid()
        names = [{"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": "pocketvlm"}}]
        for (_, name), row in list(self._threads.items()):
            names.append({"name": "thread_name", "ph": "M", "pid": process, "tid": row, "args": {"name": name}})
        return {"traceEvents": names + self.events, "displayTimeUnit": "ms"}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to `path`.

        Raises:
            EnvironmentFault: the file cannot be written.
        """
        try:
            Path(path).write_text(json.dumps(self.to_json()), encoding="utf-8")
        except OSError as error:
            raise EnvironmentFault(
                f"{path}: the trace cannot be written: {error.strerror}", "name a file in a folder that exists"
            ) from error

    def _record(self, name: str, start: int, end: int, arguments: dict[str, Any]) -> None:
        # The system gives the id of a thread that has ended to another one, which mostly has another name.
        key = (threading.get_ident(), threading.current_thread().name)
        row = self._threads.get(key)
        if row is None:
            row = self._threads[key] = next(self._rows)
        # list.append is atomic, so no lock is needed here.
        self._events.append(
            {
                "name": name,
                "ph": "X",
                "ts": (start - self._start) / 1000,
                "dur": (end - start) / 1000,
                "pid": os.getpid(),
                "tid": row,
                "args": arguments,
            }
        )


class _Span:
    __slots__ = ("_arguments", "_name", "_start", "_trace")

    def __init__(self, trace: Trace, name: str, arguments: dict[str, Any]) -> None:
        self._trace = trace
        self._name = name
        self._arguments = arguments

    def __enter__(self) -> None:
        self._start = time.perf_counter_ns()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._trace._record(self._name, self._start, time.perf_counter_ns(), self._arguments)
