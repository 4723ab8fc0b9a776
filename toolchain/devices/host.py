"""This computer, with the Python runtime."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from pocketvlm.errors import UsageError
from pocketvlm.runtime.encoding import EncodedImage
from pocketvlm.runtime.image import load_image
from pocketvlm.runtime.metrics import Metrics
from pocketvlm.runtime.placement import backend_name, is_emulated, stage_engines
from pocketvlm.runtime.session import VlmSession
from pocketvlm.toolchain.devices.report import COLD, EMULATED, ENCODED, EXCLUDED, MEASURED, TEXT, BenchJob, BenchReport, Figures
from pocketvlm.toolchain.progress import Progress

_WORDS = ("screen", "button", "battery", "alarm", "message", "network", "total", "train", "seat", "menu", "photo", "list")
_MARK = 16


def bench(address: None, job: BenchJob, progress: Progress) -> BenchReport:
    """Measure median and standard deviation of every figure.

    Cases: "text", a prompt without image; and with an image "image cold", the picture coming with the question, and
    "image encoded", the question coming when the picture has been encoded. No run may profit from an earlier one: every
    prompt begins with another number, and every picture differs in one corner.

    Raises:
        UsageError: a prompt that is too short for the model or too long for the bundle.
        PocketVLMError: see `VlmSession`.
    """
    settings = job.settings
    with VlmSession.open(job.bundle, target=job.target, threads=settings.threads) as session:
        variant = session.variant
        backend, emulated = backend_name(variant), is_emulated(variant)
        asked = _Questions(session, settings.new_tokens)
        capacity = variant.kv_cache.capacity
        if settings.prompt_tokens + 1 > capacity:
            raise UsageError(
                f"--prompt-tokens {settings.prompt_tokens} does not fit into the bundle's {capacity} positions", "give fewer"
            )
        if emulated:
            progress.note(f"warning: {backend}: {EMULATED}, and an answer may take minutes")
        progress.stage("find the length of the prompt", 2)
        asked.fit(settings.prompt_tokens, progress.advance)
        cases: dict[str, Callable[[], Metrics]] = {TEXT: lambda: asked.ask(None)}
        if job.image is not None:
            pictures = _Pictures(load_image(job.image, session.manifest.image), job.image)
            cases = {
                COLD: lambda: asked.ask(session.encode(pictures.next())),
                ENCODED: lambda: asked.ask(_finished(session.encode(pictures.next()))),
            }
        results = {name: _runs(name, measure, settings.repetitions, emulated, progress) for name, measure in cases.items()}
        return BenchReport(
            model=session.manifest.model.name,
            variant=variant.name,
            backend_actual=backend,
            stages=stage_engines(variant),
            emulated=emulated,
            settings=settings,
            note=f"{EMULATED}; {EXCLUDED}" if emulated else EXCLUDED,
            results={name: summarise(runs) for name, runs in results.items()},
        )


def _runs(name: str, measure: Callable[[], Metrics], repetitions: int, emulated: bool, progress: Progress) -> list[Metrics]:
    """Warm up and measure."""
    found = []
    progress.stage(f"{name}: one run to warm up and {repetitions} to measure", repetitions + 1)
    for number in range(repetitions + 1):
        start = time.perf_counter()
        found.append(measure())
        if emulated:
            what = f"run {number} of {repetitions}" if number else "warmed up"
            progress.note(f"{name}: {what}, {time.perf_counter() - start:.0f} s")
        progress.advance(1)
    return found[1:]


def summarise(runs: list[Metrics]) -> Figures:
    """Median and sample standard deviation of every figure that the system tells; one run has no deviation."""
    found: Figures = {}
    for name in MEASURED:
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
