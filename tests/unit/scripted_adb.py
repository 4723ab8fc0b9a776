"""An `adb` that plays a recorded dialogue, for what no real device can be brought to say."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# argv -> the first entry whose pattern is in it, and of that entry the next answer; the last answer stays.
_PROGRAM = """#!{python} -SE
import json, os, re, sys, time
folder = {folder!r}
line = " ".join(sys.argv[1:])
with open(folder + "/calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
for number, (pattern, answers) in enumerate(json.load(open(folder + "/dialogue.json"))):
    if re.search(pattern, line, re.DOTALL):
        counter = folder + "/" + str(number)
        place = int(open(counter).read()) if os.path.exists(counter) else 0
        open(counter, "w").write(str(place + 1))
        answer = answers[min(place, len(answers) - 1)]
        time.sleep(answer.get("seconds", 0))
        sys.stderr.write(answer.get("err", ""))
        sys.stdout.write(answer.get("out", ""))
        sys.exit(answer.get("code", 0))
sys.exit("not in the dialogue: " + line)
"""
VERSION = "Android Debug Bridge version 1.0.41\nVersion 35.0.2-12147458\nInstalled as /opt/platform-tools/adb\n"
HEADER = "List of devices attached\n"
ONE = HEADER + "R5CT\t\t device product:tokay model:Pixel_9 device:tokay transport_id:1\n\n"


def says(out: str = "", err: str = "", code: int = 0, seconds: float = 0) -> dict[str, Any]:
    """What adb prints, how it ends, and how long it takes."""
    return {"out": out, "err": err, "code": code, "seconds": seconds}


def ended(out: str = "", code: int = 0, err: str = "") -> dict[str, Any]:
    """What a script on the device prints when it runs to its end, with its exit code."""
    return says(f"{out}\npocketvlm-ended:{code}\n", err)


@dataclass(frozen=True)
class ScriptedAdb:
    """The program's folder, which has to be on PATH."""

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> ScriptedAdb:
        folder.mkdir(parents=True)
        program = folder / "adb"
        program.write_text(_PROGRAM.format(python=sys.executable, folder=str(folder)))
        program.chmod(0o755)
        return cls(folder)

    def play(self, *dialogue: tuple[str, dict[str, Any] | Sequence[dict[str, Any]]]) -> None:
        """Answer by the first pattern that is found in the arguments; several answers come one after the other."""
        usual = [("^version$", says(VERSION)), ("^start-server$", says()), ("^devices -l$", says(ONE))]
        entries = [
            (pattern, [answers] if isinstance(answers, dict) else list(answers)) for pattern, answers in (*dialogue, *usual)
        ]
        for path in self.folder.iterdir():
            if path.name.isdigit():
                path.unlink()
        (self.folder / "dialogue.json").write_text(json.dumps(entries))

    @property
    def calls(self) -> list[list[str]]:
        """Arguments of every call so far."""
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def was_called(self, pattern: str) -> bool:
        return any(re.search(pattern, " ".join(call), re.DOTALL) for call in self.calls)

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}"}
