"""Which tiles an image is cut into, and where their visual tokens stand in the prompt.

A grid is (columns, rows). The policies differ only in how they pick one of the candidate grids. With tiles of 384
pixels and the nine grids 1x1 to 3x3:

    image      relaxed_aspect   llava_next   internvl (up to 12 tiles)
    394 x 390  1x1              2x2          1x1
    380 x 76   1x1              1x1          5x1
    380 x 393  1x1              1x2          1x1
    500 x 102  2x1              2x1          5x1

All arithmetic is on integers and IEEE doubles, in a fixed order, so that another language gets the same grids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import BundleError, ImageError
from pocketvlm.runtime.grid_policies import load_policy
from pocketvlm.runtime.manifest import ImageTokensSpec, TilingSpec

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TilePlan:
    """How one image is cut up.

    Attributes:
        grid: (columns, rows) of tiles.
        tiles: columns * rows; the thumbnail is not counted.
        thumbnail: whether the whole picture is encoded as one more tile.
        image_tokens: positions that the image takes in the prompt.
    """

    grid: Grid
    tiles: int
    thumbnail: bool
    image_tokens: int

    @property
    def encoded_tiles(self) -> int:
        """Tiles that go through the vision encoder, the thumbnail included."""
        return self.tiles + int(self.thumbnail)

    def to_json(self) -> dict[str, object]:
        """The `tile_plan` object of the command line's --json output."""
        return {
            "grid": list(self.grid),
            "tiles": self.tiles,
            "thumbnail": self.thumbnail,
            "image_tokens": self.image_tokens,
        }


def plan_tiles(width: int, height: int, tiling: TilingSpec, tokens: ImageTokensSpec) -> TilePlan:
    """Pick the grid for an image of `width` x `height` pixels and count its tokens.

    BlueLM-V-3B's 768 x 1536 phone screen, tiles of 384 pixels with 14 x 14 tokens, one after the other: grid (2, 4),
    8 tiles and a thumbnail, 9 * 196 = 1,764 tokens.

    Raises:
        ImageError: a side below one pixel.
    """
    if width < 1 or height < 1:
        raise ImageError(f"an image of {width}x{height} pixels cannot be tiled", "both sides must be at least one pixel")
    grid = load_policy(tiling.policy)(width, height, tiling)
    tiles = grid[0] * grid[1]
    thumbnail = tiling.thumbnail == "always" or (tiling.thumbnail == "several_tiles" and tiles > 1)
    return TilePlan(grid, tiles, thumbnail, _count_tokens(grid, thumbnail, tokens))


def arrange_tokens(
    features: NDArray[np.float32], plan: TilePlan, tokens: ImageTokensSpec, newline: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Put the tiles' visual tokens into the order in which the prompt holds them.

    Args:
        features: float32 [plan.encoded_tiles, tokens.rows * tokens.cols, H]; tiles row by row, the thumbnail before
            or after them as `tokens.thumbnail_first` says.
        newline: float32 [H], given exactly when `tokens.newline` names a file.

    Returns:
        float32 [plan.image_tokens, H], newly allocated.

    Raises:
        BundleError: the arrays do not fit the plan and the manifest.
    """
    per_tile = tokens.rows * tokens.cols
    if features.ndim != 3 or features.shape[:2] != (plan.encoded_tiles, per_tile):
        raise BundleError(
            f"the connector gave features of shape {features.shape}, expected ({plan.encoded_tiles}, {per_tile}, H)",
            "image_tokens in manifest.json and the connector disagree; export the checkpoint again",
        )
    size = features.shape[2]
    if (newline is None) == bool(tokens.newline) or (newline is not None and newline.shape != (size,)):
        found = None if newline is None else newline.shape
        raise BundleError(
            f"newline embedding {found} does not fit newline file {tokens.newline!r} and hidden size {size}",
            "export the checkpoint again",
        )
    if tokens.arrangement == "tile_by_tile":
        return np.array(features, np.float32).reshape(-1, size)

    cols, rows = plan.grid
    line = cols * tokens.cols + int(newline is not None)
    thumbnail_tokens = per_tile if plan.thumbnail else 0
    first_tile = int(plan.thumbnail and tokens.thumbnail_first)
    sequence = np.empty((plan.image_tokens, size), np.float32)
    start = thumbnail_tokens if tokens.thumbnail_first else 0
    picture = sequence[start : start + rows * tokens.rows * line].reshape(rows * tokens.rows, line, size)
    if plan.thumbnail:
        if tokens.thumbnail_first:
            sequence[:per_tile] = features[0]
        else:
            sequence[-per_tile:] = features[-1]
    for index in range(plan.tiles):
        row, col = divmod(index, cols)
        top, left = row * tokens.rows, col * tokens.cols
        tile = features[first_tile + index].reshape(tokens.rows, tokens.cols, size)
        picture[top : top + tokens.rows, left : left + tokens.cols] = tile
    if newline is not None:
        picture[:, -1] = newline
    return sequence


def _count_tokens(grid: Grid, thumbnail: bool, tokens: ImageTokensSpec) -> int:
    cols, rows = grid
    per_tile = tokens.rows * tokens.cols
    if tokens.arrangement == "tile_by_tile":
        return (cols * rows + int(thumbnail)) * per_tile
    return rows * tokens.rows * (cols * tokens.cols + int(bool(tokens.newline))) + int(thumbnail) * per_tile
