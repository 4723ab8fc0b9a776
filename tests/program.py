"""What a command of the program wrote, and its exit code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)
