from __future__ import annotations

import functools
import hashlib
import io
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor

from pocketvlm.errors import ImageError
from pocketvlm.runtime.image import image_digest, load_image, make_tiles
from pocketvlm.runtime.manifest import ImageSpec, ImageTokensSpec, Resample, TilingSpec
from pocketvlm.runtime.tiling import TilePlan, plan_tiles
from pocketvlm.toolchain.tiling import internvl, llava_next, single

PLAIN = ImageSpec(mean=(0, 0, 0), std=(1, 1, 1), rescale=1.0)
ONE_TOKEN = ImageTokensSpec(1, 1, "tile_by_tile")
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
PILLOW_CLASSES = (CLIPImageProcessorPil, SiglipImageProcessorPil, LlavaNextImageProcessorPil, GotOcr2ImageProcessorPil)
TORCHVISION_CLASSES = (CLIPImageProcessor, SiglipImageProcessor, LlavaNextImageProcessor, GotOcr2ImageProcessor)


@functools.cache
def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)())


def photographs() -> list[Image.Image]:
    """Three photographs as they are and cut to odd, tall, wide, small and large sizes."""
    astronaut, coffee, chelsea = (photograph(name) for name in ("astronaut", "coffee", "chelsea"))
    return [
        astronaut,
        coffee,
        chelsea,
        astronaut.crop((3, 5, 340, 502)),
        coffee.crop((0, 100, 599, 201)),
        chelsea.crop((100, 1, 163, 298)),
        chelsea.crop((200, 100, 234, 131)),
        coffee.crop((10, 10, 421, 347)).rotate(90, expand=True),
        Image.fromarray(np.tile(np.asarray(astronaut), (3, 4, 1))[:1501, :2003]),
    ]


PHOTOGRAPHS = photographs()


def described(processor: Any) -> tuple[TilingSpec, bool]:
    """The processor's settings as a TilingSpec, and whether it puts the thumbnail first."""
    kind = type(processor).__name__.removesuffix("Pil")
    if kind == "CLIPImageProcessor":
        return single.tiling(processor.crop_size["height"], fit="crop"), True
    if kind == "SiglipImageProcessor":
        return single.tiling(processor.size["height"], fit="stretch"), True
    if kind == "LlavaNextImageProcessor":
        return llava_next.tiling(processor.crop_size["height"], processor.image_grid_pinpoints), True
    return internvl.tiling(processor.size["height"], max_tiles=processor.max_patches), False


def build(kind: type, resample: Resample = "bicubic") -> Any:
    options: dict[str, Any] = {"resample": {"bicubic": 3, "bilinear": 2, "lanczos": 1}[resample]}
    if "Llava" in kind.__name__:
        options |= {"size": {"shortest_edge": 336}, "crop_size": 336, "image_grid_pinpoints": PINPOINTS}
    if "GotOcr2" in kind.__name__:
        options |= {"crop_to_patches": True, "max_patches": 6, "size": {"height": 224, "width": 224}}
    return kind(**options)


def ours(image: Image.Image, processor: Any, resample: Resample) -> np.ndarray:
    tiling, thumbnail_first = described(processor)
    spec = ImageSpec(tuple(processor.image_mean), tuple(processor.image_std), processor.rescale_factor, resample)
    loaded = load_image(image, spec)
    return make_tiles(loaded, plan_tiles(*loaded.size, tiling, ONE_TOKEN), tiling, spec, thumbnail_first)


def theirs(image: Image.Image, processor: Any) -> np.ndarray:
    pixels = np.asarray(processor(image, return_tensors="np")["pixel_values"])
    return pixels.reshape(-1, *pixels.shape[-3:])


@pytest.mark.parametrize("kind", PILLOW_CLASSES)
@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos"])
def test_pixels_are_those_of_transformers(kind: type, resample: Resample) -> None:
    processor = build(kind, resample)
    for image in PHOTOGRAPHS:
        found = ours(image, processor, resample)
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, theirs(image, processor), err_msg=str(image.size))


def levels_from_torchvision(kind: type, image: Image.Image, resample: Resample) -> np.ndarray:
    """Distance of each value from the torchvision backend's, in 255ths before mean and deviation."""
    processor = build(kind, resample)
    deviation = np.array(processor.image_std, np.float32)[:, None, None]
    distance: np.ndarray = np.abs(ours(image, processor, resample) - theirs(image, processor)) * deviation * 255
    return distance


@pytest.mark.parametrize("kind", [CLIPImageProcessor, SiglipImageProcessor])
def test_whole_photographs_are_within_one_level_of_torchvision(kind: type) -> None:
    for image in PHOTOGRAPHS[:3]:
        assert levels_from_torchvision(kind, image, "bicubic").max() < 1.01


@pytest.mark.parametrize("kind", TORCHVISION_CLASSES)
def test_torchvision_differs_from_pillow_in_few_values(kind: type) -> None:
    """torchvision's bicubic resampling is not Pillow's: transformers' own two backends differ by up to 8 of 255 here.

    We equal the Pillow one exactly (above), so one level cannot hold for both. What can: that it is few values.
    """
    for image in PHOTOGRAPHS:
        levels = levels_from_torchvision(kind, image, "bicubic")
        assert (levels > 1.01).mean() < 5e-4, image.size
        assert levels.max() < 8.01, image.size


@pytest.mark.parametrize("size", [(2, 4), (3, 3)])
def test_background_surrounds_the_picture(size: tuple[int, int]) -> None:
    spec = ImageSpec((0, 0, 0), (1, 1, 1), 1.0, background=(10, 20, 30))
    white = Image.new("RGB", (30, 10), "white")
    tiling = TilingSpec("relaxed_aspect", 12, (size,), "never")
    tiles = make_tiles(white, plan_tiles(30, 10, tiling, ONE_TOKEN), tiling, spec, True)
    cols, rows = size
    picture = tiles.reshape(rows, cols, 3, 12, 12).transpose(0, 3, 1, 4, 2).reshape(rows * 12, cols * 12, 3)
    expected = ImageOps.pad(white, (cols * 12, rows * 12), color=spec.background)
    np.testing.assert_array_equal(picture, np.asarray(expected, np.float32))


def test_crop_over_several_tiles_covers_the_grid() -> None:
    image = photograph("coffee")
    tiling = TilingSpec("relaxed_aspect", 100, ((2, 2),), "several_tiles", fit="crop")
    tiles = make_tiles(image, plan_tiles(*image.size, tiling, ONE_TOKEN), tiling, PLAIN, False)
    whole = np.asarray(image.resize((300, 200), Image.Resampling.BICUBIC).crop((50, 0, 250, 200)), np.float32)
    np.testing.assert_array_equal(tiles[1].transpose(1, 2, 0), whole[:100, 100:])
    np.testing.assert_array_equal(tiles[2].transpose(1, 2, 0), whole[100:, :100])
    thumbnail = image.resize((150, 100), Image.Resampling.BICUBIC).crop((25, 0, 125, 100))
    np.testing.assert_array_equal(tiles[4].transpose(1, 2, 0), np.asarray(thumbnail, np.float32))


def with_transparent_colour() -> Image.Image:
    image = photograph("chelsea").copy()
    image.info["transparency"] = image.getpixel((5, 5))
    return image


def with_transparent_palette() -> Image.Image:
    image = photograph("chelsea").quantize(64)
    image.info["transparency"] = bytes(range(0, 256, 4))
    return image


def with_alpha(mode: str) -> Image.Image:
    image = photograph("coffee").convert(mode)
    gradient = np.tile(np.arange(image.width) % 256, (image.height, 1)).astype(np.uint8)
    image.putalpha(Image.fromarray(gradient))
    return image


MODES: dict[str, Callable[[], Image.Image]] = {
    "1": lambda: photograph("coffee").convert("1"),
    "L": lambda: photograph("coffee").convert("L"),
    "LA": lambda: with_alpha("LA"),
    "P": lambda: photograph("coffee").quantize(64),
    "P, transparent palette": with_transparent_palette,
    "RGB, transparent colour": with_transparent_colour,
    "RGBA": lambda: with_alpha("RGBA"),
    "CMYK": lambda: photograph("coffee").convert("CMYK"),
    "YCbCr": lambda: photograph("coffee").convert("YCbCr"),
}


@pytest.mark.parametrize("make", MODES.values(), ids=MODES)
def test_image_modes_become_what_transformers_makes_of_them(make: Callable[[], Image.Image]) -> None:
    image = make()
    processor = build(SiglipImageProcessorPil)
    np.testing.assert_array_equal(ours(image, processor, "bicubic"), theirs(image, processor))
    assert load_image(image, PLAIN).mode == "RGB"


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    loaded = load_image(saved(Image.fromarray(values), kind), PLAIN)
    expected = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(loaded), np.repeat(expected[..., None], 3, axis=2))


def test_big_endian_sixteen_bit_tiff() -> None:
    values = np.linspace(0, 65535, 64 * 64).astype(">u2").reshape(64, 64)
    image = Image.frombytes("I;16B", (64, 64), values.tobytes())
    np.testing.assert_array_equal(np.asarray(load_image(image, PLAIN))[..., 0], np.rint(values / 257).astype(np.uint8))


def test_transparent_value_of_sixteen_bit_grey_is_white() -> None:
    values = np.array([[1000, 1001], [50000, 1000]], np.uint16)
    loaded = load_image(saved(Image.fromarray(values), "PNG", transparency=1000), PLAIN)
    assert np.asarray(loaded)[..., 0].tolist() == [[255, 4], [195, 255]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_an_agreed_range(mode: str) -> None:
    with pytest.raises(ImageError, match="32-bit"):
        load_image(saved(Image.new(mode, (4, 4)), "TIFF"), PLAIN)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation(orientation: int, kind: str) -> None:
    """The pixels are laid down turned, as a camera does; opening the file turns them back."""
    upright = photograph("chelsea").resize((64, 40))
    laid_down = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.rotate(180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.rotate(90, expand=True),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.rotate(270, expand=True),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    loaded = load_image(saved(laid_down, kind, exif=exif, **options), PLAIN)
    difference = np.abs(np.asarray(loaded, int) - np.asarray(upright, int))
    assert difference.max() <= (12 if kind == "JPEG" else 0)


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    image = photograph("coffee")
    path = tmp_path / "coffee.png"
    image.save(path)
    sources = [image, np.asarray(image), path, str(path), path.read_bytes(), np.asarray(image)[:, ::-1][:, ::-1]]
    for source in sources:
        loaded = load_image(source, PLAIN)
        assert loaded is not source
        assert image_digest(loaded) == image_digest(image)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_known_formats_by_path(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    photograph("chelsea").save(path, kind)
    loaded = load_image(path, PLAIN)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(opened.convert("RGB")))
    assert loaded.resize((7, 7)).size == (7, 7)


def test_the_callers_image_is_left_alone() -> None:
    image = photograph("coffee").copy()
    image.getexif()[0x0112] = 6
    before = image.tobytes()
    assert load_image(image, PLAIN).size == (400, 600)
    assert (image.size, image.tobytes()) == ((600, 400), before)


def test_photograph_with_further_pictures_inside_gives_the_first() -> None:
    first, second = photograph("coffee"), Image.new("RGB", (60, 40))
    data = saved(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(np.asarray(load_image(data, PLAIN)), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    with pytest.raises(ImageError, match="several frames") as raised:
        load_image(saved(frames[0], kind, save_all=True, append_images=frames[1:]), PLAIN)
    assert "PNG" in raised.value.hint


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 12_000, 60_000, 2**31 - 1])
def test_bombs_are_refused_before_they_are_decoded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_decoding(*arguments: object, **options: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_decoding)
    with pytest.raises(ImageError, match="pixels") as raised:
        load_image(png_header(side, side), PLAIN)
    assert raised.value.hint == "scale the image down first"


def test_limit_is_that_of_the_bundle(tmp_path: Path) -> None:
    spec = ImageSpec((0, 0, 0), (1, 1, 1), max_pixels=100)
    exactly, over = Image.new("RGB", (10, 10)), Image.new("RGB", (11, 10))
    path = tmp_path / "over.png"
    over.save(path)
    assert load_image(exactly, spec).size == (10, 10)
    for source in (over, np.asarray(over), path, path.read_bytes()):
        with pytest.raises(ImageError, match="11x10 pixels, more than the allowed 100"):
            load_image(source, spec)


@pytest.mark.parametrize("size", [(2010, 10), (10, 2001)])
def test_extreme_proportions_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="200 times"):
        load_image(Image.new("RGB", size), PLAIN)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"no image at all, just some text", "is not an image"),
        (b"%PDF-1.7\n", "is not an image"),
        (saved(Image.new("RGB", (5, 5)), "PPM"), "is not an image"),
        (saved(photograph("coffee"), "PNG")[:20_000], "damaged or incomplete"),
        (saved(photograph("coffee"), "JPEG")[:9_000], "damaged or incomplete"),
        (saved(photograph("coffee"), "WEBP")[:9_000], "is not an image|damaged"),
        (saved(photograph("coffee"), "PNG")[:30], "is not an image|damaged"),
        (saved(photograph("coffee"), "BMP")[:5_000], "damaged or incomplete"),
        (saved(photograph("coffee"), "TIFF")[:5_000], "is not an image|damaged or incomplete"),
    ],
)
def test_unreadable_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    for source, name in ((path, str(path)), (content, "the image data")):
        with pytest.raises(ImageError, match=message) as raised:
            load_image(source, PLAIN)
        assert raised.value.message.startswith(name)
        assert raised.value.hint
        assert "\n" not in str(raised.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "no such image file": tmp_path / "missing.png",
        "is a directory": tmp_path,
        "not a regular file": tmp_path / "pipe",
        "cannot be read": tmp_path / ("x" * 5000),
    }
    for message, path in cases.items():
        with pytest.raises(ImageError, match=message):
            load_image(path, PLAIN)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_images(array: Any) -> None:
    with pytest.raises(ImageError):
        load_image(array, PLAIN)


@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]))
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_give_an_image_or_an_image_error(data: st.DataObject, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    content = bytearray(saved(photograph("chelsea").resize((24, 16)), kind, **options))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    try:
        loaded = load_image(bytes(content), ImageSpec((0, 0, 0), (1, 1, 1), max_pixels=1_000_000))
    except ImageError:
        return
    assert loaded.mode == "RGB"
    assert loaded.width * loaded.height <= 1_000_000


def test_images_load_on_several_threads_at_once() -> None:
    contents = [saved(image, "PNG") for image in PHOTOGRAPHS[:6]]
    digests: dict[int, str] = {}

    def work(index: int) -> None:
        digests[index] = image_digest(load_image(contents[index], PLAIN))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == {index: image_digest(image) for index, image in enumerate(PHOTOGRAPHS[:6])}


def test_digest_tells_pixels_and_shapes_apart() -> None:
    image = Image.new("RGB", (300, 700), (1, 2, 3))
    other = image.copy()
    other.putpixel((299, 699), (1, 2, 4))
    images = [image, other, image.crop((0, 0, 300, 699)), Image.new("RGB", (700, 300), (1, 2, 3))]
    assert len({image_digest(item) for item in images}) == 4
    assert image_digest(image) == image_digest(image.copy())


def test_digest_is_documented_sha256() -> None:
    image = photograph("chelsea")
    expected = hashlib.sha256(b"451x300\n" + np.asarray(image).tobytes()).hexdigest()
    assert image_digest(image) == expected


@pytest.mark.parametrize("thumbnail_first", [True, False])
def test_place_of_the_thumbnail(thumbnail_first: bool) -> None:
    image = photograph("coffee")
    tiling = TilingSpec("relaxed_aspect", 32, ((3, 2),), "several_tiles", fit="stretch")
    tiles = make_tiles(image, TilePlan((3, 2), 6, True, 7), tiling, PLAIN, thumbnail_first)
    assert tiles.shape == (7, 3, 32, 32)
    thumbnail = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), np.float32).transpose(2, 0, 1)
    np.testing.assert_array_equal(tiles[0 if thumbnail_first else -1], thumbnail)
