"""The recipe that `pocketvlm tune` writes says what the recipe said that it started from, wherever it lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.toolchain.backends.base import Candidate, Choice
from pocketvlm.toolchain.commands.tune import recipe_text, with_target
from pocketvlm.toolchain.recipe import ExportRecipe, load_recipe, with_paths

from .test_recipe import EVERYTHING

PROMPTS = """
calibration:
  prompts: ["What is it?", "yes", "12:30", "- a # b: {c}", " two  spaces, and so long that a writer may want to break it "]
  text: generated
"""


def resolved(recipe: ExportRecipe) -> ExportRecipe:
    return with_paths(recipe, lambda path: str(Path(path).resolve()))


def settings(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its name."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from settings(inner, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, inner


def started(folder: Path, text: str) -> ExportRecipe:
    (folder / "recipes").mkdir()
    (folder / "recipes" / "start.yaml").write_text(text)
    return load_recipe(folder / "recipes" / "start.yaml")


def written(recipe: ExportRecipe, choices: list[Choice], place: Path) -> ExportRecipe:
    place.mkdir(parents=True, exist_ok=True)
    (place / "tuned.yaml").write_text(recipe_text(recipe, choices, "qnn:SM8650", "checkpoint", place), encoding="utf-8")
    return load_recipe(place / "tuned.yaml")


@pytest.mark.parametrize("place", ["recipes", "elsewhere/deep", "."])
@pytest.mark.parametrize("text", [EVERYTHING, PROMPTS])
def test_a_recipe_means_the_same_in_another_folder(tmp_path: Path, text: str, place: str) -> None:
    recipe = started(tmp_path, text)
    assert resolved(written(recipe, [], tmp_path / place)) == resolved(recipe)


def test_no_setting_is_left_out_above(tmp_path: Path) -> None:
    default = dict(settings(ExportRecipe()))
    same = [name for name, value in settings(started(tmp_path, EVERYTHING)) if default.get(name, ()) == value]
    assert same == []


def test_paths_are_relative_to_where_the_folder_really_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "there" / "inner")
    (tmp_path / "prose.txt").write_text("prose")
    (tmp_path / "start.yaml").write_text("calibration: {text: prose.txt}")
    recipe = written(load_recipe(Path("start.yaml")), [], Path("link"))
    assert Path(recipe.calibration.text or "").read_text() == "prose"


def test_a_winner_is_written_even_where_it_is_the_default(tmp_path: Path) -> None:
    choice = Choice("qnn.attention", "64 positions", "joined", (Candidate("joined", 1.0, 0),))
    place = tmp_path / "place"
    assert written(ExportRecipe(), [choice], place) == replace(ExportRecipe(), targets=("ort-cpu",))
    assert "attention: joined" in (place / "tuned.yaml").read_text()


@pytest.mark.parametrize(
    ("targets", "tuned"),
    [
        ("qnn:SM8650", "qnn:SM8650"),
        ("ort-cpu", "ort-cpu qnn:SM8650"),
        ("qnn:SM8750", "qnn:SM8650"),
        ("qnn:SM8750 ort-cpu", "qnn:SM8650 ort-cpu"),
        ("ort-cpu qnn:SM8750", "ort-cpu qnn:SM8650"),
        ("qnn:SM8750 qnn:SM8650 ort-cpu", "qnn:SM8750 qnn:SM8650 ort-cpu"),
        # Which of them is meant nobody can tell, so none is lost.
        ("qnn:SM8750 qnn:SM8550 ort-cpu", "qnn:SM8750 qnn:SM8550 ort-cpu qnn:SM8650"),
    ],
)
def test_the_tuned_target_replaces_its_only_sibling_and_nothing_else(targets: str, tuned: str) -> None:
    assert with_target(tuple(targets.split()), "qnn:SM8650") == tuple(tuned.split())
