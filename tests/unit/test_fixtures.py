"""What tests/fixtures holds for the other languages is what this runtime computes now."""

from __future__ import annotations

import json
import platform
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import PIL
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


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 13 resizes tall images down first")
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
