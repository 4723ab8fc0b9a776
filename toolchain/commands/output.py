"""Writing results to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from pocketvlm.toolchain.console import Console


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
    """A titled table; columns of numbers are aligned right."""
    cells = [[str(value) for value in row] for row in rows]
    print_line(title)
    table = Table(box=box.SIMPLE_HEAD)
    for number, name in enumerate(header):
        numeric = all(row[number][:1].isdigit() or not row[number] for row in cells)
        table.add_column(escape(name), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(escape, row))
    _print(table)


def _print(table: Table) -> None:
    sys.stdout.flush()
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    # A pipe or file has no width to fit into, or to fill.
    console = Console(highlight=False, width=200)
    with console.capture() as written:
        console.print(table)
    for line in written.get().splitlines():
        print_line(line.rstrip())
