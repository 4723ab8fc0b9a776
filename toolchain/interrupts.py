"""Remembers Ctrl-C: inside an extension, the exception that it raises can be replaced by another one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_pressed = threading.Event()


@contextmanager
def noting_interrupts() -> Iterator[None]:
    """Within the body, `interrupted` knows of Ctrl-C. Does nothing outside the main thread, or beside another handler."""
    _pressed.clear()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return

    def note(number: int, frame: object) -> None:
        _pressed.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted() -> bool:
    """Whether Ctrl-C was pressed and nobody has dealt with it."""
    return _pressed.is_set()


def forget_interrupt() -> None:
    """Ctrl-C has been dealt with: what fails from now on does not fail because of it."""
    _pressed.clear()
