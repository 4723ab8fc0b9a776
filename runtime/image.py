"""From an image file to the numbers that the vision encoder reads.

The steps and their rounding are those of transformers' image processors with the Pillow backend (5.23), which they
equal exactly for CLIP, SigLIP, LLaVA-NeXT and GOT-OCR2/InternVL; docs/tiling.md lists where this module does more.
"""

from __future__ import annotations

import hashlib
import io
import math
import threading
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pocketvlm.errors import ImageError
from pocketvlm.runtime.manifest import ImageSpec, TilingSpec
from pocketvlm.runtime.tiling import TilePlan

ImageSource = str | Path | bytes | Image.Image | NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_SIDE_RATIO = 200

_RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_CONVERT_HINT = f"convert it to an 8-bit RGB image in one of {', '.join(FORMATS)}"
# Pillow reports suspiciously large images as a warning, and warning filters belong to the whole process.
_WARNING_FILTERS = threading.Lock()


def load_image(source: ImageSource, spec: ImageSpec) -> Image.Image:
    """Open an image as upright 8-bit RGB.

    EXIF orientation is applied. Transparent pixels show white behind them, as transformers composes them. Greyscale of
    16 bits is scaled to 8 bits (Pillow's own conversion would clip it).

    Args:
        source: a path, the bytes of an image file, a Pillow image, or a uint8 array [height, width, 3] in RGB order.
        spec: its `max_pixels` is checked before anything is decoded.

    Returns:
        A Pillow image of mode "RGB"; never `source` itself.

    Raises:
        ImageError: the file is missing, unreadable, empty, damaged, of another format or animated; the image has too
            many pixels, a side more than 200 times the other, or a pixel type that has no agreed range.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, spec)
    if isinstance(source, Image.Image):
        check_image_size(source.size, "the image", spec)
        return _decode(source, "the image", owned=False)
    if isinstance(source, bytes):
        return _from_file(io.BytesIO(source), len(source), "the image data", spec)
    path = Path(source)
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a directory, not an image", "name an image file")
        if not path.exists():
            raise ImageError(f"no such image file: {path}", "check the path")
        if not path.is_file():
            raise ImageError(f"{path} is not a regular file", "name an image file")
        with path.open("rb") as file:
            return _from_file(file, path.stat().st_size, str(path), spec)
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}", "check the file and its permissions") from error


def make_tiles(
    image: Image.Image, plan: TilePlan, tiling: TilingSpec, spec: ImageSpec, thumbnail_first: bool
) -> NDArray[np.float32]:
    """Fit the image to the plan's grid, cut it into tiles and normalise them.

    "pad" scales to fit, ratio kept, and centres on `spec.background` (LLaVA-NeXT); "stretch" scales both sides to the
    grid (SigLIP, InternVL); "crop" scales to cover the grid and cuts out the centre (CLIP). 640 x 480 on a 2x2 grid of
    336 pixels: "pad" scales to 672 x 504 with 84 rows of background above and below, "crop" to 896 x 672 and drops 112
    columns left and right. The thumbnail is the whole image stretched to one tile, or cropped to it with "crop".

    Args:
        image: mode "RGB", as `load_image` returns it.
        thumbnail_first: whether a thumbnail comes before the tiles or after them.

    Returns:
        float32 [plan.encoded_tiles, 3, tile_size, tile_size], C-contiguous, tiles row by row.
    """
    size = tiling.tile_size
    cols, rows = plan.grid
    tables = _value_tables(spec)
    tiles = np.empty((plan.encoded_tiles, 3, size, size), np.float32)
    first = int(plan.thumbnail and thumbnail_first)
    canvas = np.asarray(_fit(image, cols * size, rows * size, tiling, spec))
    for index in range(plan.tiles):
        top, left = index // cols * size, index % cols * size
        _normalise(canvas[top : top + size, left : left + size], tables, tiles[first + index])
    if plan.thumbnail:
        if tiling.fit == "crop":
            thumbnail = _cover(image, size, size, spec)
        else:
            thumbnail = image.resize((size, size), _RESAMPLE[spec.resample])
        _normalise(np.asarray(thumbnail), tables, tiles[0 if thumbnail_first else -1])
    return tiles


def image_digest(image: Image.Image) -> str:
    """SHA-256 (hexadecimal) of "WIDTHxHEIGHT\\n" and the RGB bytes, row by row: equal for equal pixels only."""
    digest = hashlib.sha256(f"{image.width}x{image.height}\n".encode())
    strip = 256
    for top in range(0, image.height, strip):
        digest.update(image.crop((0, top, image.width, min(top + strip, image.height))).tobytes())
    return digest.hexdigest()


def _from_array(array: NDArray[np.uint8], spec: ImageSpec) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"an array of {array.dtype} and shape {array.shape} is no image", "give uint8 of shape [height, width, 3], RGB"
        )
    check_image_size((array.shape[1], array.shape[0]), "the array", spec)
    return Image.fromarray(array)


def _from_file(file: IO[bytes], length: int, name: str, spec: ImageSpec) -> Image.Image:
    if length == 0:
        raise ImageError(f"{name} is empty", "the file was not written completely; save it again")
    with _WARNING_FILTERS, warnings.catch_warnings():
        # Pillow's other warnings are about damaged metadata, which the pixels do not need.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            opened = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            raise ImageError(f"{name} is not an image", f"known formats: {', '.join(FORMATS)}") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise ImageError(
                f"{name} has too many pixels: Pillow reads at most {Image.MAX_IMAGE_PIXELS}", "scale the image down first"
            ) from None
        except Exception as error:  # Pillow's readers raise many kinds for a damaged header
            raise ImageError(f"{name} is damaged: {error}", "save the image again") from error
        with opened:
            check_image_size(opened.size, name, spec)
            # A JPEG that carries further pictures (depth, gain map, preview) is a photograph; its first one is meant.
            if opened.format != "MPO" and getattr(opened, "is_animated", False):
                raise ImageError(f"{name} holds several frames or pages", "save the one that is meant as a PNG")
            return _decode(opened, name, owned=True)


def check_image_size(size: tuple[int, int], name: str, spec: ImageSpec) -> None:
    """Refuse an image by its (width, height) in pixels; `name` stands for it in the message.

    Raises:
        ImageError: no pixels, more than `spec.max_pixels`, or a side more than 200 times the other.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width}x{height})", "give an image of at least one pixel")
    if width * height > spec.max_pixels:
        raise ImageError(
            f"{name} has {width}x{height} pixels, more than the allowed {spec.max_pixels}", "scale the image down first"
        )
    # Scaling one side up by thousands would need gigabytes in between.
    if max(width, height) > MAX_SIDE_RATIO * min(width, height):
        raise ImageError(
            f"{name} has {width}x{height} pixels: one side is more than {MAX_SIDE_RATIO} times the other",
            "cut the image into parts",
        )


def _decode(image: Image.Image, name: str, *, owned: bool) -> Image.Image:
    """Upright RGB. An image that is `owned` may be changed, which saves a copy of all its pixels."""
    try:
        if owned:
            ImageOps.exif_transpose(image, in_place=True)
        else:
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image, name)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds for damaged data
        raise ImageError(f"{name} is damaged or incomplete: {error}", "save or copy the image again") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _sixteen_bit_grey_to_rgb(image)
    if image.mode in ("I", "F"):
        raise ImageError(f"{name} has 32-bit pixels without an agreed range", _CONVERT_HINT)
    if image.getbands()[-1] in ("A", "a") or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _sixteen_bit_grey_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    # 65535 = 255 * 257: the nearest of 0..255, halves upwards.
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _fit(image: Image.Image, width: int, height: int, tiling: TilingSpec, spec: ImageSpec) -> Image.Image:
    if tiling.fit == "stretch":
        return image.resize((width, height), _RESAMPLE[spec.resample])
    if tiling.fit == "crop":
        return _cover(image, width, height, spec)
    return _pad(image, width, height, spec)


def _pad(image: Image.Image, width: int, height: int, spec: ImageSpec) -> Image.Image:
    """LLaVA-NeXT's rounding (`get_patch_output_size`): the free side up, the odd row of padding below or right."""
    scale_width, scale_height = width / image.width, height / image.height
    if scale_width < scale_height:
        inner = (width, min(math.ceil(image.height * scale_width), height))
    else:
        inner = (min(math.ceil(image.width * scale_height), width), height)
    canvas = Image.new("RGB", (width, height), spec.background)
    canvas.paste(image.resize(inner, _RESAMPLE[spec.resample]), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def _cover(image: Image.Image, width: int, height: int, spec: ImageSpec) -> Image.Image:
    """CLIP's rounding (`get_resize_output_image_size`, `center_crop`): the longer side and the offsets down."""
    if width * image.height >= height * image.width:
        outer = (width, width * image.height // image.width)
    else:
        outer = (height * image.width // image.height, height)
    left, top = (outer[0] - width) // 2, (outer[1] - height) // 2
    return image.resize(outer, _RESAMPLE[spec.resample]).crop((left, top, left + width, top + height))


def _value_tables(spec: ImageSpec) -> NDArray[np.float32]:
    """float32 [3, 256]: what each of the 256 values becomes, per channel, rounded as transformers rounds."""
    scaled = (np.arange(256) * spec.rescale).astype(np.float32)
    mean, deviation = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    tables: NDArray[np.float32] = (scaled[None, :] - mean[:, None]) / deviation[:, None]
    return tables


def _normalise(pixels: NDArray[np.uint8], tables: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """uint8 [S, S, 3] -> float32 [3, S, S], written to `out`."""
    for channel in range(3):
        np.take(tables[channel], pixels[..., channel], out=out[channel], mode="clip")
