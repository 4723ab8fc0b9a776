"""Writing results to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    print_line(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))


def print_line(text: str = "") -> None:
    """A line of plain text on stdout."""
    sys.stdout.write(text + "\n")


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values in two columns."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in pairs:
        table.add_row(escape(name), escape(str(value)))
    _print(table)


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A titled table; every column after the first is aligned right."""
    print_line(title)
    table = Table(box=box.SIMPLE_HEAD)
    for number, name in enumerate(header):
        table.add_column(escape(name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row))
    _print(table)


def megabytes(count: int) -> str:
    """Bytes as "12.3 MB"."""
    return f"{count / 1e6:.1f} MB"


def _print(table: Table) -> None:
    sys.stdout.flush()
    console = Console(highlight=False)
    if not console.is_terminal:
        # A pipe or file has no width to fit into.
        console = Console(highlight=False, width=200)
    console.print(table)
