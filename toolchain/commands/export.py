"""`pocketvlm export`"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketvlm.errors import UsageError
from pocketvlm.toolchain.backends import BACKENDS
from pocketvlm.toolchain.bundle import check_replaceable
from pocketvlm.toolchain.commands.origin import naming_origin
from pocketvlm.toolchain.commands.output import print_line
from pocketvlm.toolchain.progress import RichProgress
from pocketvlm.toolchain.recipe import ExportRecipe, Qnn, idle_settings, load_recipe


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
        if targets.count(target) > 1:
            raise UsageError(f"--target {target} was given twice", "give each target once")
    check_replaceable(output)
    recipe = load_recipe(config) if config else ExportRecipe()
    given = {name: value for name, value in overrides.items() if value is not None}
    if targets:
        given["targets"] = targets
    recipe = replace(recipe, **given)
    # A recipe for an NPU serves for the CPU alone, too, if that is what the options ask for.
    idle = idle_settings(recipe) if targets else []
    if idle:
        recipe = replace(recipe, qnn=Qnn())

    from pocketvlm.toolchain.checkpoint import Checkpoint
    from pocketvlm.toolchain.export import export_checkpoint

    with (
        naming_origin(config, given),
        RichProgress() as progress,
        Checkpoint.open(checkpoint, revision=revision) as opened,
    ):
        if idle:
            progress.note(f"{config}: {', '.join(idle)}: without effect on --target {' '.join(targets)}")
        export_checkpoint(opened, output, recipe, progress)
    print_line(str(output))
