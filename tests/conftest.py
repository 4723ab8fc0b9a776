"""For all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A script's background job ignores Ctrl-C, and so would all processes that tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
