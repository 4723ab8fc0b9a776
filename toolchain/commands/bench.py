"""`pocketvlm bench`"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from pocketvlm.errors import UsageError
from pocketvlm.runtime.encoding import EncodedImage
from pocketvlm.runtime.image import load_image
from pocketvlm.runtime.metrics import Metrics
from pocketvlm.runtime.placement import backend_name, is_emulated, stage_engines
from pocketvlm.runtime.session import VlmSession
from pocketvlm.toolchain.commands.output import print_json, print_line, print_table
from pocketvlm.toolchain.progress import Progress, RichProgress

Format = Literal["json", "markdown", "table"]

_WORDS = ("screen", "button", "battery", "alarm", "message", "network", "total", "train", "seat", "menu", "photo", "list")
_MEASURED = (
    "load_ms",
    "vision_ms",
    "tiles",
    "image_tokens",
    "prompt_tokens",
    "new_tokens",
    "ttft_ms",
    "prefill_tok_s",
    "decode_tok_s",
    "overhead_ms_per_token",
    "peak_rss_mb",
)
_MARK = 16
_EXCLUDED = "load_ms and one run that warms up are not part of the other figures"
_EMULATED = "emulated on this computer: says nothing about a phone"

# Name of a figure -> median, and the sample standard deviation of more than one run.
Figures = dict[str, dict[str, float | None]]


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for."""

    prompt_tokens: int
    new_tokens: int
    repetitions: int
    threads: int | None
    image: str | None


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured.

    Attributes:
        backend_actual: as the metrics have it.
        stages: the engine of each graph.
        emulated: whether one of them runs on an emulation of its device.
    """

    model: str
    variant: str
    backend_actual: str
    stages: dict[str, str]
    emulated: bool


def bench(
    bundle: Path, image: Path | None, prompt_tokens: int, new_tokens: int, repetitions: int, threads: int | None,
    target: str | None, form: Format,
) -> None:  # fmt: skip
    """Measure and print median and standard deviation of every figure.

    Cases: "text", a prompt without image; and with an image "image cold", the picture coming with the question, and
    "image encoded", the question coming when the picture has been encoded. No run may profit from an earlier one: every
    prompt begins with another number, and every picture differs in one corner.

    Raises:
        PocketVLMError: see `VlmSession`.
    """
    settings = Settings(prompt_tokens, new_tokens, repetitions, threads, image.name if image else None)
    with RichProgress() as progress, VlmSession.open(bundle, target=target, threads=threads) as session:
        variant = session.variant
        subject = Subject(
            session.manifest.model.name, variant.name, backend_name(variant), stage_engines(variant), is_emulated(variant)
        )
        asked = _Questions(session, new_tokens)
        capacity = session.variant.kv_cache.capacity
        if prompt_tokens + 1 > capacity:
            raise UsageError(
                f"--prompt-tokens {prompt_tokens} does not fit into the bundle's {capacity} positions", "give fewer"
            )
        if subject.emulated:
            progress.note(f"warning: {subject.backend_actual}: {_EMULATED}, and an answer may take minutes")
        progress.stage("find the length of the prompt", 2)
        asked.fit(prompt_tokens, progress.advance)
        cases: dict[str, Callable[[], Metrics]] = {"text": lambda: asked.ask(None)}
        if image is not None:
            pictures = _Pictures(load_image(image, session.manifest.image), image)
            cases = {
                "image cold": lambda: asked.ask(session.encode(pictures.next())),
                "image encoded": lambda: asked.ask(_finished(session.encode(pictures.next()))),
            }
        results = {name: _runs(name, measure, repetitions, subject, progress) for name, measure in cases.items()}
    _print(form, subject, settings, {name: summarise(runs) for name, runs in results.items()})


def _runs(name: str, measure: Callable[[], Metrics], repetitions: int, subject: Subject, progress: Progress) -> list[Metrics]:
    """Warm up and measure."""
    found = []
    progress.stage(f"{name}: one run to warm up and {repetitions} to measure", repetitions + 1)
    for number in range(repetitions + 1):
        start = time.perf_counter()
        found.append(measure())
        if subject.emulated:
            what = f"run {number} of {repetitions}" if number else "warmed up"
            progress.note(f"{name}: {what}, {time.perf_counter() - start:.0f} s")
        progress.advance(1)
    return found[1:]


def summarise(runs: list[Metrics]) -> Figures:
    """Median and sample standard deviation of every figure that the system tells; one run has no deviation."""
    found: Figures = {}
    for name in _MEASURED:
        values = [float(getattr(run, name)) for run in runs if getattr(run, name) is not None]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            found[name] = {"median": statistics.median(values), "sd": deviation}
    return found


class _Questions:
    """Asks for long enough answers to prompts of a wanted length."""

    def __init__(self, session: VlmSession, new_tokens: int) -> None:
        self._session = session
        self._new_tokens = new_tokens
        self._words = 1
        self._asked = 0

    def fit(self, wanted: int, advance: Callable[[int], None]) -> None:
        """Find how many words give a text prompt of about `wanted` positions, by two answers."""
        many = 2 * len(_WORDS)
        few_tokens = self._measure(1)
        advance(1)
        many_tokens = self._measure(1 + many)
        per_word = (many_tokens - few_tokens) / many
        if wanted < few_tokens:
            raise UsageError(
                f"--prompt-tokens {wanted} is too short", f"the shortest prompt of this model has {few_tokens} tokens"
            )
        self._words = 1 + round((wanted - few_tokens) / per_word)

    def ask(self, image: EncodedImage | None) -> Metrics:
        """One question that no earlier one begins like; reads the answer to its end."""
        return self._answer(self._words, image, self._new_tokens)

    def _measure(self, words: int) -> int:
        return self._answer(words, None, 1).prompt_tokens

    def _answer(self, words: int, image: EncodedImage | None, new_tokens: int) -> Metrics:
        self._asked += 1
        text = " ".join([str(self._asked), *(_WORDS[(self._asked + n) % len(_WORDS)] for n in range(words - 1))])
        shown = [] if image is None else [{"type": "image", "image": image}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
        stream = self._session.chat(messages, max_new_tokens=new_tokens, temperature=0.0)
        for _ in stream:
            pass
        return stream.metrics


class _Pictures:
    """Files of the same picture, each with a corner of another grey, so that none is in a cache."""

    def __init__(self, picture: Image.Image, path: Path) -> None:
        self._picture = picture
        self._jpeg = path.suffix.lower() in (".jpg", ".jpeg")
        self._made = 0

    def next(self) -> bytes:
        """The next picture as the bytes of a PNG or JPEG file."""
        self._made += 1
        picture = self._picture.copy()
        level = (37 * self._made) % 256
        picture.paste((level, level, level), (0, 0, min(_MARK, picture.width), min(_MARK, picture.height)))
        content = io.BytesIO()
        picture.save(content, "JPEG" if self._jpeg else "PNG", **({"quality": 95} if self._jpeg else {}))
        return content.getvalue()


def _finished(image: EncodedImage) -> EncodedImage:
    image.wait()
    return image


def _print(form: Format, subject: Subject, settings: Settings, results: dict[str, Figures]) -> None:
    note = f"{_EMULATED}; {_EXCLUDED}" if subject.emulated else _EXCLUDED
    if form == "json":
        print_json({**asdict(subject), "settings": asdict(settings), "note": note, "results": results})
        return
    names = [name for name in _MEASURED if any(name in figures for figures in results.values())]
    rows = [[name, *(_cell(figures.get(name)) for figures in results.values())] for name in names]
    threads = f"{settings.threads} threads" if settings.threads else "the engine's threads"
    count = "one run" if settings.repetitions == 1 else f"median ± sd of {settings.repetitions} runs"
    title = f"{subject.model}, {subject.backend_actual}, {threads}: {count}"
    if subject.emulated:
        title += f", {_EMULATED}"
    if form == "table":
        print_table(title, ["", *results], rows)
        print_line(note)
        return
    print_line(f"{title}\n\n| | {' | '.join(results)} |\n|---|{'---:|' * len(results)}")
    for row in rows:
        print_line(f"| {' | '.join(row)} |")
    print_line(f"\n{note}")


def _cell(figure: dict[str, float | None] | None) -> str:
    if figure is None:
        return ""
    # What was measured once, or is always the same, has no spread.
    return f"{figure['median']:.4g}" + (f" ± {figure['sd']:.2g}" if figure["sd"] else "")
