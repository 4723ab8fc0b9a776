"""`pocketvlm export`"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketvlm.toolchain.backends import BACKENDS
from pocketvlm.toolchain.commands.output import print_line
from pocketvlm.toolchain.progress import RichProgress
from pocketvlm.toolchain.recipe import ExportRecipe, load_recipe


def export(
    checkpoint: str,
    output: Path,
    config: Path | None,
    targets: tuple[str, ...],
    overrides: Mapping[str, Any],
    revision: str | None,
) -> None:
    """Export and print the bundle's path.

    Args:
        targets, overrides: replace the recipe's; None and () leave them.

    Raises:
        PocketVLMError: see `export_checkpoint`, `load_recipe`, `Checkpoint.open`.
    """
    for target in targets:
        BACKENDS.require(target)
    recipe = load_recipe(config) if config else ExportRecipe()
    recipe = replace(recipe, **{name: value for name, value in overrides.items() if value is not None})
    if targets:
        recipe = replace(recipe, targets=tuple(dict.fromkeys(targets)))

    from pocketvlm.toolchain.checkpoint import Checkpoint
    from pocketvlm.toolchain.export import export_checkpoint

    with RichProgress() as progress, Checkpoint.open(checkpoint, revision=revision) as opened:
        export_checkpoint(opened, output, recipe, progress)
    print_line(str(output))
