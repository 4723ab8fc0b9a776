"""`pocketvlm tune`"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from pocketvlm.errors import EnvironmentFault, UsageError
from pocketvlm.toolchain.backends import BACKENDS
from pocketvlm.toolchain.backends.base import Candidate, Choice
from pocketvlm.toolchain.commands.output import print_json, print_line, print_table
from pocketvlm.toolchain.progress import RichProgress
from pocketvlm.toolchain.recipe import ExportRecipe, load_recipe, with_paths

_LABEL = "estimates of the compiler for a simulated chip: for ranking, never a phone's latency"


def tune(checkpoint: str, target: str, output: Path, config: Path | None, revision: str | None, as_json: bool) -> None:
    """Rank a recipe's open choices for a target and write the recipe with the winners and their evidence.

    Raises:
        PocketVLMError: see `prepare`, `load_recipe`, `Checkpoint.open` and the target's `tune`.
    """
    BACKENDS.require(target)
    if output.exists():
        raise UsageError(f"{output}: exists", "choose another output, or remove it yourself")
    if not output.parent.is_dir():
        raise UsageError(f"{output}: there is no folder {output.parent}", "make it first")
    recipe = load_recipe(config) if config else ExportRecipe()
    if target not in recipe.targets:
        recipe = replace(recipe, targets=(target,))

    from pocketvlm.toolchain.checkpoint import Checkpoint
    from pocketvlm.toolchain.export import describe
    from pocketvlm.toolchain.weights import CanonicalWeights

    with RichProgress() as progress, Checkpoint.open(checkpoint, revision=revision) as opened:
        spec, rename = describe(opened, recipe)
        backend = BACKENDS.load(target)(target)
        backend.check(spec, recipe)
        with tempfile.TemporaryDirectory(prefix="pocketvlm-tune-") as scratch:
            tuned, choices = backend.tune(spec, CanonicalWeights(opened, spec, rename), recipe, Path(scratch), progress)
    try:
        output.write_text(recipe_text(tuned, choices, target, checkpoint, output.parent), encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(
            f"{output}: cannot be written: {error.strerror}", "check the folder and the free space"
        ) from error
    if as_json:
        print_json({"recipe": str(output), "label": _LABEL, "choices": [asdict(choice) for choice in choices]})
        return
    for choice in choices:
        rows = [_row(item, choice.winner) for item in choice.candidates]
        print_table(f"\n{choice.key}: {choice.work}", ("value", "ms simulated", "MB spilled a layer", ""), rows)
    print_line(f"\n{_LABEL}\n{output}")


def _row(item: Candidate, winner: str) -> tuple[str, str, str, str]:
    if item.milliseconds is None:
        return item.value, "none", "", item.failure
    return item.value, f"{item.milliseconds:.1f}", f"{item.spilled_bytes / 1e6:.1f}", "*" if item.value == winner else ""


def recipe_text(recipe: ExportRecipe, choices: list[Choice], target: str, checkpoint: str, folder: Path) -> str:
    """The recipe as YAML, opened by what its choices rest on; paths are relative to `folder`."""
    lines = [f"# Tuned for {target} with {checkpoint}.", f"# Below are {_LABEL}.", "#"]
    for choice in choices:
        lines.append(f"# {choice.key}: {choice.work}")
        for item in choice.candidates:
            if item.milliseconds is None:
                lines.append(f"#   {item.value:>6}  not compiled: {' '.join(item.failure.split())}")
                continue
            mark = " <- taken" if item.value == choice.winner else ""
            spilled = f", {item.spilled_bytes / 1e6:.1f} MB spilled a layer" if item.spilled_bytes else ""
            lines.append(f"#   {item.value:>6}  {item.milliseconds:10.1f} ms{spilled}{mark}")
    return "\n".join([*lines, "", *_yaml(recipe, choices, folder)]) + "\n"


def _yaml(recipe: ExportRecipe, choices: list[Choice], folder: Path) -> Iterator[str]:
    import io

    from ruamel.yaml import YAML

    recipe = with_paths(recipe, lambda path: _relative(path, folder))
    changed = _changed(recipe, ExportRecipe())
    for choice in choices:
        # Written even where it is the default of today.
        section, _, name = choice.key.rpartition(".")
        where = getattr(recipe, section) if section else recipe
        (changed.setdefault(section, {}) if section else changed)[name] = getattr(where, name)
    buffer = io.StringIO()
    writer = YAML()
    writer.default_flow_style = False
    writer.dump(changed, buffer)
    yield from buffer.getvalue().splitlines()


def _relative(path: str, folder: Path) -> str:
    """`path` as seen from `folder`; a link on the way to either would lead ".." elsewhere."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))


def _changed(value: Any, default: Any) -> dict[str, Any]:
    """Fields that differ from their default; the target always."""
    found: dict[str, Any] = {}
    for item in fields(value):
        mine, other = getattr(value, item.name), getattr(default, item.name)
        if mine == other and item.name != "targets":
            continue
        if is_dataclass(mine) and is_dataclass(other):
            found[item.name] = _changed(mine, other)
        elif is_dataclass(mine):
            found[item.name] = {name: _plain(part) for name, part in asdict(mine).items() if part is not None}  # type: ignore[arg-type]
        else:
            found[item.name] = _plain(mine)
    return found


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
