"""Where a setting came from, for errors about it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketvlm.errors import RecipeError, SettingError, UsageError

# Settings of a recipe that the command line has options for.
_OPTIONS = {
    "targets": "--target",
    "precision": "--precision",
    "max_seq_len": "--max-seq-len",
    "chunk_size": "--chunk-size",
}
_NAMED = re.compile(rf"`({'|'.join(_OPTIONS)})`")
_ADDED_TARGET = re.compile(r"add (\S+) to `targets`")


@contextmanager
def naming_origin(config: Path | None, given: Collection[str] = ()) -> Iterator[None]:
    """Errors about settings name the recipe that holds them, or the options of the command line.

    Args:
        config: the recipe's file.
        given: settings that came as options, by their names in a recipe.

    Raises:
        UsageError: what options ask for cannot be followed.
        RecipeError: what the file asks for cannot be followed, or a file that it names cannot be used.
    """
    try:
        yield
    except SettingError as error:
        message, hint = _spelled(error.message, given), _spelled(error.hint, given)
        if config is None or error.key in given:
            raise UsageError(message, hint) from error
        raise RecipeError(f"{config}: {message}", hint) from error
    except RecipeError as error:
        if config is None:
            raise
        raise RecipeError(f"{config}: {error.message}", error.hint) from error


def _spelled(text: str, given: Collection[str]) -> str:
    """`text` with the settings in it as the user has spelled them."""
    if "targets" in given:
        text = _ADDED_TARGET.sub(r"add --target \1", text)
    return _NAMED.sub(lambda match: _OPTIONS[match[1]] if match[1] in given else match[1], text)
