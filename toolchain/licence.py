"""Which licence a checkpoint says that it is under."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
# First words of well-known texts, in the spelling of the hub's licence names.
_TEXTS = {
    "apache license": "apache-2.0",
    "mit license": "mit",
    "the mit license": "mit",
    "bsd 3-clause license": "bsd-3-clause",
    "gnu general public license": "gpl-3.0",
}
_READ_BYTES = 64 * 1024
_MAX_LENGTH = 80


def read_licence(files: Mapping[str, Path], config: Mapping[str, Any]) -> str:
    """Licence from README.md's front matter, a LICENSE file or config.json, in this order.

    Args:
        files: "README.md" and names of licence files -> paths, which need not exist.

    Returns:
        The hub's name of the licence where it is known, else the first line of its text, else "unknown".
    """
    matter = _FRONT_MATTER.match(_start(files["README.md"]))
    if matter:
        named = {key: _value(matter[1], key) for key in ("license", "license_name")}
        found = named["license_name"] if named["license"] == "other" else named["license"]
        if found or named["license"]:
            return (found or named["license"])[:_MAX_LENGTH]
    for name, path in files.items():
        lines = [line.strip(" #*\t") for line in _start(path).splitlines()] if name != "README.md" else []
        title = next((line for line in lines if line), "")
        if title:
            return _TEXTS.get(title.lower(), title[:_MAX_LENGTH])
    stated = config.get("license")
    return stated[:_MAX_LENGTH] if isinstance(stated, str) and stated else "unknown"


def _value(matter: str, key: str) -> str:
    """A scalar, or the first item of a list, of YAML that is too simple for a parser."""
    found = re.search(rf"^{key}:[ \t]*(?:\r?\n[ \t]*-[ \t]*|\[[ \t]*)?([^\r\n,\]#]*)", matter, re.MULTILINE)
    return found[1].strip().strip("'\"") if found else ""


def _start(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(_READ_BYTES).decode("utf-8", errors="replace")
