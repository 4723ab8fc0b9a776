from __future__ import annotations

import random
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaNextModel
from transformers.image_processing_utils import select_best_resolution
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from pocketvlm.errors import BundleError, CheckpointError, ImageError
from pocketvlm.runtime.grid_policies import GRID_POLICIES
from pocketvlm.runtime.manifest import ImageTokensSpec, TilingSpec
from pocketvlm.runtime.tiling import TilePlan, arrange_tokens, plan_tiles
from pocketvlm.toolchain.tiling import TILINGS, grids, internvl, llava_next, relaxed_aspect, single

NINE = grids.rectangle(3, 3)
BLUELM_TOKENS = ImageTokensSpec(rows=14, cols=14, arrangement="tile_by_tile")
SIDES = st.one_of(st.integers(1, 30), st.integers(1, 3000), st.integers(1, 100_000))
CANDIDATES = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=20, unique=True)


def pick(width: int, height: int, tiling: TilingSpec) -> tuple[int, int]:
    return plan_tiles(width, height, tiling, BLUELM_TOKENS).grid


# BlueLM-V-3B, section 3.2 and appendix, tiles of 384 pixels. (width, height): relaxed, LLaVA-NeXT, InternVL 1.5.
@pytest.mark.parametrize(
    ("size", "relaxed", "next_grid", "intern"),
    [
        ((394, 390), (1, 1), (2, 2), (1, 1)),
        ((380, 76), (1, 1), (1, 1), (5, 1)),
        ((380, 393), (1, 1), (1, 2), (1, 1)),
        ((500, 102), (2, 1), (2, 1), (5, 1)),
    ],
)
def test_cases_of_the_paper(
    size: tuple[int, int], relaxed: tuple[int, int], next_grid: tuple[int, int], intern: tuple[int, int]
) -> None:
    assert pick(*size, relaxed_aspect.tiling(384, NINE)) == relaxed
    assert pick(*size, TilingSpec("llava_next", 384, NINE, "always")) == next_grid
    assert pick(*size, internvl.tiling(384)) == intern
    assert pick(*size, single.tiling(384, fit="crop")) == (1, 1)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        # 2x3 keeps all 23,100 pixels, 2x2 104 * 200 = 20,800 (2,300 fewer: under a tenth), 1x2 100 * 190 = 19,000: within
        # a tenth of 2x2's, but not of the most.
        ((110, 210), (2, 2)),
        # 1x3 keeps all 12,600, 1x2 57 * 200 = 11,400 (1,200 fewer: under a tenth), 1x1 28 * 100 = 2,800.
        ((60, 210), (1, 2)),
    ],
)
def test_relaxed_measures_a_loss_against_the_most_effective_pixels(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert pick(*size, relaxed_aspect.tiling(100, grids.rectangle(4, 4))) == grid


@pytest.mark.parametrize("size", [(768, 1536), (1080, 2160), (720, 1440), (1080, 2340)])
def test_phone_screen_takes_nine_tiles_and_1764_tokens(size: tuple[int, int]) -> None:
    plan = plan_tiles(*size, relaxed_aspect.tiling(384, grids.rectangle(4, 4)), BLUELM_TOKENS)
    assert plan == TilePlan(grid=(2, 4), tiles=8, thumbnail=True, image_tokens=1764)
    assert plan.encoded_tiles == 9
    assert plan.to_json() == {"grid": [2, 4], "tiles": 8, "thumbnail": True, "image_tokens": 1764}


@given(width=SIDES, height=SIDES, candidates=CANDIDATES, tile=st.integers(1, 500), alpha=st.floats(0.001, 0.9))
@settings(max_examples=500, deadline=None)
def test_relaxed_never_takes_more_tiles_than_llava_next(
    width: int, height: int, candidates: list[tuple[int, int]], tile: int, alpha: float
) -> None:
    relaxed = pick(width, height, relaxed_aspect.tiling(tile, candidates, alpha=alpha))
    other = pick(width, height, TilingSpec("llava_next", tile, tuple(candidates), "always"))
    assert relaxed[0] * relaxed[1] <= other[0] * other[1]


@given(width=SIDES, height=SIDES, candidates=CANDIDATES, tile=st.integers(1, 500))
@settings(max_examples=500, deadline=None)
def test_llava_next_picks_what_transformers_picks(
    width: int, height: int, candidates: list[tuple[int, int]], tile: int
) -> None:
    pinpoints = [(rows * tile, cols * tile) for cols, rows in candidates]
    found = pick(width, height, llava_next.tiling(tile, pinpoints))
    assert (found[1] * tile, found[0] * tile) == select_best_resolution((height, width), pinpoints)


@given(width=SIDES, height=SIDES, tile=st.integers(1, 500), fewest=st.integers(1, 4), more=st.integers(0, 12))
@settings(max_examples=500, deadline=None)
def test_internvl_picks_what_transformers_picks(width: int, height: int, tile: int, fewest: int, more: int) -> None:
    expected = get_optimal_tiled_canvas((height, width), (tile, tile), fewest, fewest + more)
    found = pick(width, height, internvl.tiling(tile, min_tiles=fewest, max_tiles=fewest + more))
    assert found == expected


@pytest.mark.parametrize("policy", ["relaxed_aspect", "internvl"])
def test_order_of_the_candidates_never_changes_how_many_tiles(policy: str) -> None:
    shuffled = tuple(random.Random(0).sample(NINE, len(NINE)))
    for width in range(50, 2000, 190):
        for height in range(60, 2000, 170):
            one = pick(width, height, TilingSpec(policy, 384, NINE, "never"))
            other = pick(width, height, TilingSpec(policy, 384, shuffled, "never"))
            assert one[0] * one[1] == other[0] * other[1]


@pytest.mark.parametrize(
    ("thumbnail", "for_one", "for_several"),
    [("never", False, False), ("several_tiles", False, True), ("always", True, True)],
)
def test_thumbnail(thumbnail: str, for_one: bool, for_several: bool) -> None:
    tiling = relaxed_aspect.tiling(100, NINE, thumbnail=thumbnail)  # type: ignore[arg-type]
    assert plan_tiles(90, 90, tiling, BLUELM_TOKENS).thumbnail is for_one
    assert plan_tiles(300, 90, tiling, BLUELM_TOKENS).thumbnail is for_several


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 3)])
def test_no_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="cannot be tiled"):
        plan_tiles(*size, relaxed_aspect.tiling(384, NINE), BLUELM_TOKENS)


@given(
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    side=st.integers(1, 5),
    newline=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_picture_rows_are_those_of_transformers_llava_next(grid: tuple[int, int], side: int, newline: bool) -> None:
    """`pack_image_features` puts the thumbnail first, the tiles' rows after it, a newline after each row.

    The image has exactly the grid's proportions, so that transformers removes no padding.
    """
    cols, rows = grid
    tile, size = side * 2, 3
    tiling = llava_next.tiling(tile, [(rows * tile, cols * tile)])
    tokens = ImageTokensSpec(side, side, "picture_rows", True, "newline.bin" if newline else "")
    plan = plan_tiles(cols * tile, rows * tile, tiling, tokens)
    generator = np.random.default_rng(0)
    features = generator.random((plan.encoded_tiles, side * side, size), np.float32)
    embedding = generator.random(size, np.float32) if newline else None
    model = SimpleNamespace(
        config=SimpleNamespace(
            vision_config=SimpleNamespace(image_size=tile, patch_size=2), image_grid_pinpoints=[[rows * tile, cols * tile]]
        )
    )
    packed, _ = LlavaNextModel.pack_image_features(
        model,
        [torch.from_numpy(features)],
        torch.tensor([[rows * tile, cols * tile]]),
        vision_feature_select_strategy="full",
        image_newline=None if embedding is None else torch.from_numpy(embedding),
    )
    arranged = arrange_tokens(features, plan, tokens, embedding)
    assert len(arranged) == plan.image_tokens
    np.testing.assert_array_equal(arranged, packed[0].numpy())


def test_picture_rows_by_hand_with_the_thumbnail_last() -> None:
    tokens = ImageTokensSpec(rows=1, cols=2, arrangement="picture_rows", thumbnail_first=False, newline="n")
    plan = plan_tiles(20, 10, TilingSpec("relaxed_aspect", 10, ((2, 1),), "several_tiles"), tokens)
    features = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
    assert plan.image_tokens == 7
    assert arrange_tokens(features, plan, tokens, np.array([9], np.float32)).ravel().tolist() == [0, 1, 2, 3, 9, 4, 5]


def test_tile_by_tile_keeps_the_order_and_copies() -> None:
    tokens = ImageTokensSpec(rows=2, cols=2, arrangement="tile_by_tile", thumbnail_first=False)
    plan = plan_tiles(20, 10, TilingSpec("relaxed_aspect", 10, ((2, 1),), "several_tiles"), tokens)
    features = np.arange(3 * 4 * 2, dtype=np.float32).reshape(3, 4, 2)
    arranged = arrange_tokens(features, plan, tokens, None)
    np.testing.assert_array_equal(arranged, features.reshape(12, 2))
    assert not np.shares_memory(arranged, features)


@pytest.mark.parametrize(
    ("shape", "newline", "file"),
    [
        ((2, 4, 8), None, ""),  # a tile is missing
        ((3, 5, 8), None, ""),  # tokens per tile
        ((12, 8), None, ""),
        ((3, 4, 8), None, "newline.bin"),
        ((3, 4, 8), np.zeros(8, np.float32), ""),
        ((3, 4, 8), np.zeros(7, np.float32), "newline.bin"),
    ],
)
def test_features_that_do_not_fit(shape: tuple[int, ...], newline: np.ndarray | None, file: str) -> None:
    tokens = ImageTokensSpec(2, 2, "picture_rows", newline=file)
    plan = TilePlan((2, 1), 2, True, 12)
    with pytest.raises(BundleError):
        arrange_tokens(np.zeros(shape, np.float32), plan, tokens, newline)


def test_table_holds_a_builder_for_every_policy_of_the_manifest() -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "relaxed_aspect": (384, NINE),
        "llava_next": (384, [[384, 768]]),
        "internvl": (384,),
        "single": (384,),
    }
    assert set(arguments) == set(GRID_POLICIES)
    for name, values in arguments.items():
        options = {"fit": "stretch"} if name == "single" else {}
        assert TILINGS.load(name)(*values, **options).policy == name


def test_llava_next_pinpoints_are_height_and_width() -> None:
    spec = llava_next.tiling(336, [[336, 672], [672, 336], [1008, 336]])
    assert spec.grids == ((2, 1), (1, 2), (1, 3))


def test_internvl_has_35_grids_of_up_to_12_tiles() -> None:
    assert len(internvl.tiling(448).grids) == 35


@pytest.mark.parametrize(
    "build",
    [
        lambda: relaxed_aspect.tiling(384, []),
        lambda: relaxed_aspect.tiling(384, [(1, 1), (1, 1)]),
        lambda: relaxed_aspect.tiling(384, [(0, 1)]),
        lambda: relaxed_aspect.tiling(384, [(101, 1)]),
        lambda: relaxed_aspect.tiling(0, NINE),
        lambda: relaxed_aspect.tiling(384, NINE, alpha=-0.1),
        lambda: relaxed_aspect.tiling(384, NINE, alpha=float("nan")),
        lambda: relaxed_aspect.tiling(384, grids.rectangle(40, 40)),
        lambda: llava_next.tiling(336, [[336, 600]]),
        lambda: llava_next.tiling(0, [[336, 336]]),
        lambda: llava_next.tiling(336, [[336]]),
        lambda: internvl.tiling(448, min_tiles=5, max_tiles=4),
        lambda: single.tiling(5000, fit="pad"),
    ],
)
def test_impossible_specs_are_refused(build: object) -> None:
    with pytest.raises(CheckpointError, match=r"tiling|image_grid_pinpoints"):
        build()  # type: ignore[operator]


def test_documentation_holds_the_output_of_its_benchmark() -> None:
    root = Path(__file__).parents[2]
    table = runpy.run_path(str(root / "benchmarks" / "tiling_table.py"))["render"]()
    assert table in (root / "docs" / "tiling.md").read_text(encoding="utf-8")
