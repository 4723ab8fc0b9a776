"""`pocketvlm tune`"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from pocketvlm.errors import EnvironmentFault, UsageError
from pocketvlm.toolchain.atomic import check_folders, partial_path
from pocketvlm.toolchain.backends import BACKENDS, family
from pocketvlm.toolchain.backends.base import Candidate, Choice
from pocketvlm.toolchain.commands.origin import naming_origin
from pocketvlm.toolchain.commands.output import print_json, print_line, print_table
from pocketvlm.toolchain.progress import RichProgress
from pocketvlm.toolchain.recipe import MAX_RECIPE_BYTES, ExportRecipe, load_recipe, with_paths

_LABEL = "estimates of the compiler for a simulated chip: for ranking, never a phone's latency"
# The last line of a recipe, by which the next run knows that it may replace it.
_SEAL = "# pocketvlm tune may overwrite this file as long as the lines above have the sha256 {}\n"


def tune(checkpoint: str, target: str, output: Path, config: Path | None, revision: str | None, as_json: bool) -> None:
    """Rank a recipe's open choices for a target and write the recipe with the winners and their evidence.

    Raises:
        PocketVLMError: see `prepare`, `load_recipe`, `Checkpoint.open` and the target's `tune`.
    """
    BACKENDS.require(target)
    _check_place(output)
    recipe = load_recipe(config, (target,)) if config else ExportRecipe((target,))
    recipe = replace(recipe, targets=with_target(recipe.targets, target))

    from pocketvlm.toolchain.checkpoint import Checkpoint
    from pocketvlm.toolchain.prepare import describe
    from pocketvlm.toolchain.weights import CanonicalWeights

    with (
        naming_origin(config),
        RichProgress() as progress,
        Checkpoint.open(checkpoint, revision=revision) as opened,
    ):
        spec, rename = describe(opened, recipe)
        backend = BACKENDS.load(target)(target)
        backend.check(spec, recipe)
        with tempfile.TemporaryDirectory(prefix="pocketvlm-tune-") as scratch:
            tuned, choices = backend.tune(spec, CanonicalWeights(opened, spec, rename), recipe, Path(scratch), progress)
    _write(output, recipe_text(tuned, choices, target, checkpoint, output.parent))
    if as_json:
        print_json({"recipe": str(output), "label": _LABEL, "choices": [asdict(choice) for choice in choices]})
        return
    for choice in choices:
        rows = [_row(item, choice.winner) for item in choice.candidates]
        print_table(f"\n{choice.key}: {choice.work}", ("value", "ms simulated", "MB spilled a layer", ""), rows)
    print_line(f"\n{_LABEL}\n{output}")


def with_target(targets: tuple[str, ...], tuned: str) -> tuple[str, ...]:
    """`targets` with the one that was tuned: in the place of the only other one of its family, otherwise behind the rest.

    With ("qnn:SM8750", "ort-cpu"), "qnn:SM8650" makes ("qnn:SM8650", "ort-cpu").
    """
    if tuned in targets:
        return targets
    siblings = [target for target in targets if family(target) == family(tuned)]
    if len(siblings) == 1:
        return tuple(tuned if target == siblings[0] else target for target in targets)
    return (*targets, tuned)


def _check_place(output: Path) -> None:
    """Refuse a place that cannot be written, or holds anything but an earlier result that nobody has changed.

    Raises:
        UsageError: there is no folder, or the file is the user's.
        EnvironmentFault: the system refuses.
    """
    check_folders(output)
    with _writing(output):
        if not output.parent.is_dir():
            raise UsageError(f"{output}: there is no folder {output.parent}", "make it first")
        if output.exists() and not _is_ours(output):
            raise UsageError(
                f"{output}: exists and is not what pocketvlm tune wrote", "choose another output, or remove it yourself"
            )
        partial = partial_path(output.resolve())
        partial.touch()
        partial.unlink()


def _is_ours(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > MAX_RECIPE_BYTES:
        return False
    lines = path.read_bytes().splitlines(keepends=True)
    return bool(lines) and lines[-1] == _seal(b"".join(lines[:-1]))


def _seal(content: bytes) -> bytes:
    return _SEAL.format(hashlib.sha256(content).hexdigest()).encode()


def _write(output: Path, text: str) -> None:
    # What has come there meanwhile must not be lost.
    _check_place(output)
    content = text.encode("utf-8")
    # A link stays a link.
    partial = partial_path(output.resolve())
    with _writing(output):
        try:
            partial.write_bytes(content + _seal(content))
            partial.replace(output.resolve())
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"{output}: cannot be written: {error.strerror}", "check the folder and the free space"
        ) from error


def _row(item: Candidate, winner: str) -> tuple[str, str, str, str]:
    if item.milliseconds is None:
        return item.value, "none", "", item.failure
    return item.value, f"{item.milliseconds:.1f}", f"{item.spilled_bytes / 1e6:.1f}", "*" if item.value == winner else ""


def recipe_text(recipe: ExportRecipe, choices: list[Choice], target: str, checkpoint: str, folder: Path) -> str:
    """The recipe as YAML, opened by what its choices rest on; paths are relative to `folder`."""
    lines = [f"# Tuned for {target} with {' '.join(checkpoint.split())}.", f"# Below are {_LABEL}.", "#"]
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
