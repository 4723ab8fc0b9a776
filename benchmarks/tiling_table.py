"""How often each tiling rule picks a smaller grid than the others, as a Markdown table.

    python benchmarks/tiling_table.py

After BlueLM-V-3B's Table 2, which counts this over two training sets. Those are not ours to ship, so the images here
are a stated lattice of sizes: 16 aspect ratios (width over height) times 60 areas, no pixels needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pocketvlm.runtime.manifest import ImageTokensSpec, TilingSpec
from pocketvlm.runtime.tiling import plan_tiles
from pocketvlm.toolchain.tiling import grids, internvl, relaxed_aspect

TILE_SIZE = 384
RATIOS = (
    ("phone screens, upright", (1 / 2.22, 1 / 2.17, 1 / 2, 9 / 16)),
    ("photographs and pages", (2 / 3, 1 / math.sqrt(2), 3 / 4, 1.0, 4 / 3, 3 / 2)),
    ("wide screens and scenes", (16 / 9, 2.0, 2.35)),
    ("banners and lines of text", (3.0, 5.0, 8.0)),
)
AREAS = tuple(64**2 * (3072 / 64) ** (2 * step / 59) for step in range(60))
TOKENS = ImageTokensSpec(14, 14, "tile_by_tile")
NINE = grids.rectangle(3, 3)

RELAXED = relaxed_aspect.tiling(TILE_SIZE, NINE)
LLAVA_NEXT = TilingSpec("llava_next", TILE_SIZE, NINE, "several_tiles")
INTERNVL_NINE = TilingSpec("internvl", TILE_SIZE, NINE, "several_tiles", fit="stretch")
INTERNVL_TWELVE = internvl.tiling(TILE_SIZE)


def sizes(ratios: Sequence[float]) -> list[tuple[int, int]]:
    """Whole (width, height) of each ratio at each area."""
    return [
        (max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))) for ratio in ratios for area in AREAS
    ]


def _tiles(tiling: TilingSpec, images: Sequence[tuple[int, int]]) -> list[int]:
    return [plan_tiles(width, height, tiling, TOKENS).tiles for width, height in images]


def _compare(images: Sequence[tuple[int, int]], other: TilingSpec) -> str:
    pairs = list(zip(_tiles(RELAXED, images), _tiles(other, images), strict=True))
    counts = [sum(test(ours, theirs) for ours, theirs in pairs) for test in _TESTS]
    return " | ".join(f"{count} ({count / len(pairs):.0%})" for count in counts)


_TESTS: tuple[Callable[[int, int], bool], ...] = (
    lambda ours, theirs: ours < theirs,
    lambda ours, theirs: ours == theirs,
    lambda ours, theirs: ours > theirs,
)


def render() -> str:
    """Both tables as Markdown."""
    groups = [(name, sizes(ratios)) for name, ratios in RATIOS]
    groups.append(("all", [image for _, images in groups for image in images]))
    others = (
        ("LLaVA-NeXT, 1x1 to 3x3", LLAVA_NEXT),
        ("InternVL 1.5, 1x1 to 3x3", INTERNVL_NINE),
        ("InternVL 1.5, up to 12 tiles", INTERNVL_TWELVE),
    )
    lines = [
        f"Relaxed aspect ratio matching over 1x1 to 3x3, tiles of {TILE_SIZE} pixels: grid compared with that of",
        "",
        "| rule | images | number | relaxed smaller | same number | relaxed larger |",
        "|---|---|---|---|---|---|",
    ]
    for rule, other in others:
        lines += [f"| {rule} | {name} | {len(images)} | {_compare(images, other)} |" for name, images in groups]
    everything = groups[-1][1]
    lines += ["", "| rule | mean tiles | mean image tokens, 196 per tile, thumbnail included |", "|---|---|---|"]
    for rule, tiling in (("relaxed, 1x1 to 3x3", RELAXED), *others):
        plans = [plan_tiles(width, height, tiling, TOKENS) for width, height in everything]
        tiles = sum(plan.tiles for plan in plans) / len(plans)
        tokens = sum(plan.image_tokens for plan in plans) / len(plans)
        lines.append(f"| {rule} | {tiles:.2f} | {tokens:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")
