"""The rich console of this program."""

from __future__ import annotations

from rich import console


class Console(console.Console):
    """Lets a closed pipe be an exception like any other; rich itself would end the process with exit code 1."""

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the BrokenPipeError.

        Raises:
            BrokenPipeError: always.
        """
        raise BrokenPipeError("nobody reads the output any more")
