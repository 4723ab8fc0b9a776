"""Remembers Ctrl-C and SIGTERM: inside an extension, the exception that one of them raises can be replaced by another one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NoReturn

from pocketvlm.errors import Cancelled

# What a shell reports for a program that SIGTERM has ended.
TERMINATED = 128 + signal.SIGTERM
_came: list[int] = []


class Terminated(SystemExit):
    """SIGTERM came. Not a KeyboardInterrupt, which `pocketvlm chat` takes for the end of one answer."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


@contextmanager
def noting_interrupts() -> Iterator[None]:
    """Within the body, Ctrl-C and SIGTERM raise KeyboardInterrupt and Terminated, and `interrupted` knows of them.

    So whatever cleans up after the one cleans up after the other. Does nothing outside the main thread, or beside another
    handler.
    """
    _came.clear()
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) is usual:
                    signal.signal(number, _note)
                    stack.callback(signal.signal, number, usual)
        yield


def _note(number: int, frame: FrameType | None) -> NoReturn:
    _came.append(number)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def interrupted() -> bool:
    """Whether Ctrl-C was pressed and nobody has dealt with it, or SIGTERM came."""
    return bool(_came)


def terminated() -> bool:
    """Whether SIGTERM came."""
    return signal.SIGTERM in _came


def cancelled() -> Cancelled:
    """What the program ends with after the signal that came."""
    error = Cancelled("interrupted")
    if terminated():
        error = Cancelled("terminated")
        error.exit_code = TERMINATED
    return error


def forget_interrupt() -> None:
    """Ctrl-C has been dealt with: what fails from now on does not fail because of it."""
    _came[:] = [number for number in _came if number != signal.SIGINT]
