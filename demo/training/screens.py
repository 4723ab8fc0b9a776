"""Generated phone screens with questions, answers and the character under every visual token.

A screen is drawn for a grid of tiles (cols x rows, 160 pixels each): settings, receipts, chats, option lists
and tickets, in several fonts, sizes, themes and alignments. Some screens are narrower or shorter than their
grid (the tiler then pads them), some are drawn larger and scaled down, as real screenshots are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from contents import ANY_VALUE, KINDS, TRAIN_KEYS, WORDS, Kind, invented_word, make_value, mixed_kind
from vocabulary import CHARACTERS

TILE = 160
TOKEN = 16
TOKENS_PER_SIDE = TILE // TOKEN
SLOTS = 3
EVERYTHING_LINES = 4  # "Read everything." of longer screens is for training alone
LEAST_LEADING, MOST_LEADING = 1.25, 2.4  # distance of two lines, in letter sizes

TRAIN_FONTS = (
    "Roboto-Regular.ttf", "Roboto-Medium.ttf", "Roboto-Bold.ttf", "OpenSans-Regular.ttf", "OpenSans-Semibold.ttf",
    "Lato-Medium.ttf", "Lato-Bold.ttf", "LiberationSans-Regular.ttf", "DejaVuSans.ttf", "NotoSans-Regular.ttf",
    "Inter-Regular.otf", "Inter-SemiBold.otf", "InterDisplay-Medium.otf", "Carlito-Regular.ttf", "Karla-Regular.otf",
    "Manrope-Medium.ttf", "Oxygen-Sans.ttf", "Play-Regular.otf", "Cabin-Medium.otf", "Comfortaa-Regular.ttf",
    "Mplus1-Regular.otf", "ClearSans-Medium.ttf", "URWGothic-Book.otf", "GilliusADF-Regular.otf",
    "UniversalisADFStd-Regular.otf", "LeagueSpartan-Regular.otf", "AveriaSansGWF-Regular.ttf", "Junction.otf",
    "Dosis-SemiBold.otf", "Jura-Medium.otf",
)  # fmt: skip
UNSEEN_FONTS = ("Cantarell-Regular.otf", "Quicksand-Medium.ttf")


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a screen. `kind` names the column of the score table it counts in; "lesson" is never asked there."""

    kind: str
    text: str
    answer: str


@dataclass(slots=True)
class Screen:
    """A drawn screen: `image` (RGB), its tile `grid` (cols, rows), its questions, and its character labels.

    `labels` is int64 [rows * 10, cols * 10, 3]: indices into CHARACTERS of the characters, up to three, whose centres
    lie in that visual token, left to right; 0 (space) means none.
    """

    image: Image.Image
    grid: tuple[int, int]
    labels: np.ndarray
    questions: list[Question]

    @property
    def asked(self) -> list[Question]:
        """The questions that a test may ask: all but lessons."""
        return [question for question in self.questions if question.kind != "lesson"]


@dataclass(slots=True)
class _Text:
    x: float
    y: float
    text: str
    font: ImageFont.FreeTypeFont
    color: tuple[int, int, int]


@dataclass(slots=True)
class _Layout:
    texts: list[_Text] = field(default_factory=list)
    circles: list[tuple[float, float, float, bool]] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    lines: list[float] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    everything: list[str] = field(default_factory=list)


@lru_cache(maxsize=512)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    try:
        # Basic layout: the other one depends on libraries that not every machine has.
        return ImageFont.truetype(name, size, layout_engine=ImageFont.Layout.BASIC)
    except OSError:
        raise SystemExit(f"error: font {name} is not installed: demo/model/README.md names the packages") from None


@lru_cache(maxsize=65536)
def _width(name: str, size: int, text: str) -> float:
    return float(_font(name, size).getlength(text))


def _fit(name: str, size: int, text: str, width: float) -> str:
    while len(text) > 1 and _width(name, size, text) > width:
        text = text[:-1].rstrip()
    return text


def _lines(rng: random.Random, top: float, bottom: float, size: int, most: int) -> list[float]:
    """Tops of up to `most` lines between `top` and `bottom`, evenly spaced, wherever they fall on the tiles."""
    count = min(most, int((bottom - top) / (LEAST_LEADING * size)))
    if count < 1:
        return []
    pitch = rng.uniform(LEAST_LEADING * size, min(MOST_LEADING * size, (bottom - top) / count))
    start = top + rng.random() * (bottom - top - pitch * count)
    return [round(start + pitch * number) for number in range(count)]


def _rows_of(rng: random.Random, layout: _Layout, name: str, size: int, box: tuple[float, float, float, float],
             color: tuple[int, int, int], kind: Kind, keys: tuple[str, ...]) -> None:  # fmt: skip
    """Key-value rows (settings, receipts, chats, tickets) inside `box` = left, top, right, bottom."""
    left, top, right, bottom = box
    width = right - left
    tops = _lines(rng, top, bottom, size, rng.randrange(1, 4) if bottom - top < 5 * size else rng.randrange(2, 10))
    style = rng.choice(kind.styles)
    for y, key in zip(tops, rng.sample(keys, min(len(keys), len(tops))), strict=False):
        what = rng.choice(kind.values)
        key_text = key + (":" if style in ("colon", "chat") else "")
        gap = _width(name, size, " ") * (1 if style != "right" else 2)
        room = width - _width(name, size, key_text) - gap
        whole = make_value(rng, what)
        value = _fit(name, size, whole, room)
        if _width(name, size, value) > room or (what == "switch" and value != whole):
            continue
        offset = 0.0
        total = _width(name, size, key_text) + gap + _width(name, size, value)
        if style == "chat":
            offset = rng.choice((0.0, width - total))
            layout.boxes.append((left + offset - 4, y - 1, left + offset + total + 4, y + size * 1.2))
        layout.texts.append(_Text(left + offset, y, key_text, _font(name, size), color))
        x = right - _width(name, size, value) if style == "right" else left + offset + total - _width(name, size, value)
        layout.texts.append(_Text(x, y, value, _font(name, size), color))
        if what == "switch":
            layout.questions.append(Question("yes_no", f"Is {key} on?", "Yes" if value == "On" else "No"))
        else:
            layout.questions.append(Question("value", rng.choice((f"What is the {key}?", f"{key}?")), value))
        layout.everything.append(f"{key_text} {value}")


def _options_of(rng: random.Random, layout: _Layout, name: str, size: int, box: tuple[float, float, float, float],
                color: tuple[int, int, int], keys: tuple[str, ...]) -> None:  # fmt: skip
    """A list of options, one of them selected (a filled circle; the others are rings)."""
    left, top, right, bottom = box
    tops = _lines(rng, top, bottom, size, min(len(keys), rng.randrange(2, 6)))
    if len(tops) < 2:
        return
    chosen = rng.randrange(len(tops))
    options = [_fit(name, size, option, right - left - size * 1.4) for option in rng.sample(keys, len(tops))]
    at_right = rng.random() < 0.3
    for index, (y, option) in enumerate(zip(tops, options, strict=True)):
        radius = size * 0.36
        cx = right - radius if at_right else left + radius
        layout.circles.append((cx, y + size * 0.62, radius, index == chosen))
        layout.texts.append(_Text(left if at_right else left + size * 1.2, y, option, _font(name, size), color))
        layout.everything.append(option)
    layout.questions.append(Question("selected", "Which option is selected?", options[chosen]))
    layout.questions.append(Question("count", "How many options are there?", str(len(tops))))


def make_screen(rng: random.Random, grid: tuple[int, int], *, unseen_font: bool = False, unseen_keys: bool = False,
                mixed: float = 0.6, draw: bool = True) -> Screen:  # fmt: skip
    """Draw one screen for `grid` = (cols, rows); the share `mixed` of them shows what no real screen does.

    With `draw=False` the image is left blank: only the labels and questions are made (for the decoder's first
    lessons). Deterministic for a given state of `rng`.
    """
    cols, rows = grid
    full_width, full_height = cols * TILE, rows * TILE
    width, height = full_width, full_height
    if rng.random() < 0.35:
        if rng.random() < 0.5:
            width -= rng.randrange(0, max(1, full_width // 10))
        else:
            height -= rng.randrange(0, full_height // 10)
    name = rng.choice(UNSEEN_FONTS if unseen_font else TRAIN_FONTS)
    size = rng.randrange(22, 25) if cols == 1 else rng.randrange(23, 29)
    dark = rng.random() < 0.5
    base = rng.randrange(0, 50) if dark else rng.randrange(205, 256)
    tint = [max(0, min(255, base + rng.randrange(-15, 16))) for _ in range(3)]
    ink_level = rng.randrange(205, 256) if dark else rng.randrange(0, 70)
    ink = (ink_level, ink_level, ink_level)
    shown = mixed_kind(rng, unseen_keys) if rng.random() < mixed else rng.choice(KINDS)
    keys = shown.unseen_keys if unseen_keys else shown.keys
    layout = _Layout()
    margin = rng.randrange(3, 14 if cols > 1 else 8)
    top = rng.randrange(0, 16)
    if rng.random() < 0.65:
        hour, minute = rng.randrange(24), rng.randrange(60)
        clock = f"{hour:02d}:{minute:02d}" if rng.random() < 0.7 else f"{1 + hour % 9}:{minute:02d}"
        layout.texts.append(_Text(margin, top, clock, _font(name, size), ink))
        layout.questions.append(Question("time", "What time is it?", clock))
        status = clock
        if cols > 1 and rng.random() < 0.6:
            battery = f"{rng.randrange(1, 101)}%"
            layout.texts.append(_Text(width - margin - _width(name, size, battery), top, battery, _font(name, size), ink))
            status += " " + battery
        layout.everything.append(status)
        top += round(size * rng.uniform(LEAST_LEADING, MOST_LEADING))
    if rows * cols > 1 and rng.random() < 0.8:
        title = _fit(name, size, rng.choice(shown.titles), width - 2 * margin)
        x = margin if rng.random() < 0.5 else (width - _width(name, size, title)) / 2
        layout.texts.append(_Text(x, top, title, _font(name, size), ink))
        layout.questions.append(Question("title", "What is the title?", title))
        layout.everything.append(title)
        top += round(size * rng.uniform(LEAST_LEADING, MOST_LEADING))
        if rng.random() < 0.5:
            layout.lines.append(top - size * 0.05)
    box = (margin, top, width - margin, height - 3.0)
    if rng.random() < 0.28:
        _options_of(rng, layout, name, size, box, ink, keys)
    else:
        _rows_of(rng, layout, name, size, box, ink, shown, keys)
    if layout.everything:
        kind = "everything" if len(layout.everything) <= EVERYTHING_LINES else "lesson"
        layout.questions.append(Question(kind, "Read everything.", "\n".join(layout.everything)))
    # Only these may be drawn larger: the tiler would give a bigger grid to the others.
    keeps_grid = rows * cols == 8 or (rows * cols == 6 and (width, height) == (full_width, full_height))
    scale = rng.uniform(1.5, 3.4) if keeps_grid and rng.random() < 0.35 else 1.0
    image = _draw(layout, (width, height), tuple(tint), ink, scale) if draw else Image.new("RGB", (width, height))
    offset = ((full_width - width) // 2, (full_height - height) // 2)
    return Screen(image, grid, _labels(layout, grid, offset, name, size), layout.questions)


def make_dense_tile(rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """One tile full of text, for lessons in reading: pixels uint8 [160, 160, 3], labels int64 [10, 10, 3].

    A tile of a screen holds seven characters on average, this one about fifty.
    """
    name, size = rng.choice(TRAIN_FONTS), rng.randrange(22, 29)
    dark = rng.random() < 0.5
    base = rng.randrange(0, 50) if dark else rng.randrange(205, 256)
    tint = tuple(max(0, min(255, base + rng.randrange(-15, 16))) for _ in range(3))
    level = rng.randrange(205, 256) if dark else rng.randrange(0, 70)
    layout = _Layout()
    y = rng.randrange(-size, size // 3)
    while y < TILE:
        x = rng.uniform(-30.0, 30.0)
        while x < TILE:
            kind = rng.random()
            if kind < 0.06:
                layout.circles.append((x + size * 0.36, y + size * 0.62, size * 0.36, rng.random() < 0.5))
                x += size * 1.2
                continue
            known = rng.choice((*TRAIN_KEYS, *WORDS))
            word = make_value(rng, rng.choice(ANY_VALUE)) if kind < 0.6 else rng.choice((known, invented_word(rng)))
            word += rng.choice(("", "", "", ":", "?", "."))
            layout.texts.append(_Text(x, y, word, _font(name, size), (level, level, level)))
            x += _width(name, size, word) + _width(name, size, " ") * rng.choice((1, 1, 1, 3))
        y += round(size * rng.uniform(LEAST_LEADING, 2.0))
    scale = rng.uniform(1.5, 3.4) if rng.random() < 0.25 else 1.0
    image = _draw(layout, (TILE, TILE), tint, (level, level, level), scale)
    if image.width != TILE:
        image = image.resize((TILE, TILE), Image.Resampling.BICUBIC)
    return np.asarray(image), _labels(layout, (1, 1), (0, 0), name, size)


def _draw(layout: _Layout, size: tuple[int, int], background: tuple[int, ...], ink: tuple[int, int, int],
          scale: float) -> Image.Image:  # fmt: skip
    # Equal scale in both directions, as a screenshot has.
    image = Image.new("RGB", (round(size[0] * scale), round(size[1] * scale)), background)
    canvas = ImageDraw.Draw(image)
    accent = tuple(int(0.82 * b + 0.18 * i) for b, i in zip(background, ink, strict=True))
    for box in layout.boxes:
        canvas.rounded_rectangle([value * scale for value in box], radius=6 * scale, fill=accent)
    for y in layout.lines:
        canvas.line([(0, y * scale), (image.width, y * scale)], fill=accent, width=max(1, round(scale)))
    for cx, cy, radius, filled in layout.circles:
        box = [(cx - radius) * scale, (cy - radius) * scale, (cx + radius) * scale, (cy + radius) * scale]
        canvas.ellipse(box, outline=ink, width=max(2, round(2 * scale)), fill=ink if filled else None)
    for text in layout.texts:
        font = text.font if scale == 1.0 else text.font.font_variant(size=text.font.size * scale)
        canvas.text((text.x * scale, text.y * scale), text.text, font=font, fill=text.color)
    return image


def _labels(layout: _Layout, grid: tuple[int, int], offset: tuple[int, int], name: str, size: int) -> np.ndarray:
    labels = np.zeros((grid[1] * TOKENS_PER_SIDE, grid[0] * TOKENS_PER_SIDE, SLOTS), np.int64)

    def put(x: float, y: float, character: str) -> None:
        column, row = int((x + offset[0]) // TOKEN), int((y + offset[1]) // TOKEN)
        if 0 <= row < labels.shape[0] and 0 <= column < labels.shape[1]:
            slot = min(int(np.count_nonzero(labels[row, column])), SLOTS - 1)
            labels[row, column, slot] = CHARACTERS.index(character)

    for cx, cy, _, filled in layout.circles:
        put(cx, cy, "*" if filled else "o")
    for text in sorted(layout.texts, key=lambda item: item.x):
        x = text.x
        middle = text.y + text.font.getmetrics()[0] - 0.33 * size  # half the height of a digit above the baseline
        for character in text.text:
            advance = _width(name, size, character)
            if character != " ":
                put(x + advance / 2, middle, character)
            x += advance
    return labels


def tiles_of(screen: Screen) -> np.ndarray:
    """The tiles of a screen as the runtime makes them: uint8 [tiles, 160, 160, 3], thumbnail first when several.

    The image is scaled to fit the grid, padded with black to its centre, cut row by row.
    """
    cols, rows = screen.grid
    width, height = screen.image.size
    scale = min(cols * TILE / width, rows * TILE / height)
    fitted = screen.image
    size = (min(cols * TILE, round(width * scale)), min(rows * TILE, round(height * scale)))
    if size != fitted.size:
        fitted = fitted.resize(size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (cols * TILE, rows * TILE))
    canvas.paste(fitted, ((cols * TILE - size[0]) // 2, (rows * TILE - size[1]) // 2))
    pixels = np.asarray(canvas).reshape(rows, TILE, cols, TILE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, TILE, TILE, 3)
    if cols * rows > 1:
        thumbnail = np.asarray(screen.image.resize((TILE, TILE), Image.Resampling.BICUBIC))
        pixels = np.concatenate([thumbnail[None], pixels])
    return pixels
