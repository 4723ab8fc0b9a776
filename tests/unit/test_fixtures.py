"""What tests/fixtures holds for the other languages is what this runtime computes now."""

from __future__ import annotations

import json
import platform
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FIXTURES = Path(__file__).parents[1] / "fixtures"


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(FIXTURES / name))


def test_tile_plans_and_token_orders_are_current() -> None:
    assert (FIXTURES / "tiling.json").read_text(encoding="utf-8") == script("make_tiling.py")["text"]()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere numpy's float32 exp rounds differently")
def test_drawn_tokens_are_current() -> None:
    found, expected = script("make_sampler.py")["build"](), json.loads((FIXTURES / "sampler.json").read_text("utf-8"))
    assert found.keys() == expected.keys()
    for name, content in found.items():
        assert content == expected[name], name


def test_manifests_are_current() -> None:
    assert (FIXTURES / "manifests.json").read_text(encoding="utf-8") == script("make_manifests.py")["content"]()


def test_rendered_prompts_are_current() -> None:
    assert (FIXTURES / "prompts.json").read_text(encoding="utf-8") == script("make_prompts.py")["content"]()


def test_bundles_of_the_scripted_engine_and_their_answers_are_current(tmp_path: Path) -> None:
    made = script("make_sessions.py")
    made["make_bundles"](tmp_path)
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (FIXTURES / "bundles" / path.relative_to(tmp_path)).read_bytes(), path
    found = made["content"](made["build"](FIXTURES / "bundles"))
    assert (FIXTURES / "sessions.json").read_text(encoding="utf-8") == found


def test_pixels_and_tiles_are_current() -> None:
    found, expected = script("make_images.py")["build"](), json.loads((FIXTURES / "images.json").read_text("utf-8"))
    assert found.keys() == expected.keys()
    for name, entries in found.items():
        for entry, wanted in zip(json.loads(json.dumps(entries)), expected[name], strict=True):
            assert entry == wanted


def test_photographs_are_the_parts_that_the_script_names() -> None:
    images = script("make_images.py")
    for name in images["PHOTOGRAPHS"]:
        with Image.open(FIXTURES / "images" / f"{name}.png") as stored:
            np.testing.assert_array_equal(np.asarray(stored), np.asarray(images["photograph"](name)))


def test_graphs_are_current() -> None:
    made = script("make_graphs.py")["build"]()
    assert made == {path.name: path.read_bytes() for path in (FIXTURES / "graphs").iterdir()}
