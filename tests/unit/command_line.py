"""The command line in tests: what a command wrote, and its exit code. Answers come from the scripted engine."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.program import Ended

BundleAt = Callable[..., Path]
# After <bot> (4) comes w10 w11 w12 and the end (2).
REPLY = {4: 10, 10: 11, 11: 12, 12: 2}


class Result(Ended):
    def failed(self, code: int, pattern: str) -> None:
        """Nothing but one line came, on stderr."""
        assert self.code == code, self.err
        assert re.fullmatch(rf"error: [^\n]*{pattern}[^\n]*\n", self.err), self.err


Call = Callable[..., Result]


def process(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pocketvlm.toolchain.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
