"""`pocketvlm list`"""

from __future__ import annotations

from pocketvlm.toolchain.architectures import ARCHITECTURES
from pocketvlm.toolchain.backends import BACKENDS
from pocketvlm.toolchain.commands.output import print_json, print_line
from pocketvlm.toolchain.connectors import CONNECTORS
from pocketvlm.toolchain.tiling import TILINGS


def list_names(section: str | None, as_json: bool) -> None:
    """Print the tables, or one of them: a name a line, or {"architectures": [...], ...}."""
    tables = {"architectures": ARCHITECTURES, "connectors": CONNECTORS, "tilings": TILINGS, "targets": BACKENDS}
    chosen = {name: list(table.names()) for name, table in tables.items() if section in (None, name)}
    if as_json:
        print_json(chosen)
    elif section is not None:
        print_line("\n".join(chosen[section]))
    else:
        for name, names in chosen.items():
            print_line(f"{name}: {', '.join(names)}")
