"""The work behind one answer: prompt, prefill, sampling, text, figures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import BundleError, Cancelled, ContextLengthError, UsageError
from pocketvlm.runtime.decoder import Decoder
from pocketvlm.runtime.encoding import EncodedImage
from pocketvlm.runtime.engines.protocol import Array
from pocketvlm.runtime.metrics import Metrics, SessionFigures, StopReason, peak_resident_mb
from pocketvlm.runtime.prompt import ImageSlot, Message, PromptBuilder, PromptTokens, images_of
from pocketvlm.runtime.sampler import Sampler, SamplingOptions
from pocketvlm.runtime.tiling import TilePlan
from pocketvlm.runtime.tokenizer import StopStrings, StreamDecoder, Tokenizer
from pocketvlm.runtime.trace import Trace

Messages = Sequence[Message | Mapping[str, Any]]


@dataclass(slots=True)
class Workshop:
    """What every answer of a session works with.

    Attributes:
        encode: starts the encoding of an image source.
        preprocessing: of this session, as in `EncodedImage.preprocessing`.
        image_token_id: what the repetition penalty sees of an image, as in transformers.
        max_length: most positions of the KV cache that prompt and answer may take.
        figures: the session's part of the metrics.
        resident: what each position of the KV cache stands for: a token id, or (image key, number).
    """

    decoder: Decoder
    prompt: PromptBuilder
    tokenizer: Tokenizer
    encode: Callable[[Any], EncodedImage]
    preprocessing: str
    stop_token_ids: frozenset[int]
    image_token_id: int
    max_length: int
    figures: Callable[[], SessionFigures]
    trace: Trace
    resident: list[Hashable]


class Answer:
    """One answer in the making. `run` is for one thread; `cancel` may be called from any.

    Raises:
        UsageError: max_new_tokens below 1.
        PromptError: an empty stop string.
    """

    def __init__(
        self, workshop: Workshop, messages: Messages, max_new_tokens: int, sampling: SamplingOptions, stop: Sequence[str]
    ) -> None:
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}", "it must be 1 or more")
        self.text = ""
        self.token_ids: list[int] = []
        self.tile_plans: tuple[TilePlan, ...] = ()
        self.metrics: Metrics | None = None
        self._start = time.perf_counter()
        self._workshop = workshop
        self._messages = messages
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self._stop = StopStrings(stop)
        self._cancelled = threading.Event()
        self._wake = threading.Event()
        self._images: list[EncodedImage] = []
        self._images_were_done = False
        self._prompt_tokens = 0
        self._reused = 0
        self._computed = 0
        self._first_text: float | None = None
        self._prefill_seconds = 0.0
        self._decoding = _Stopwatch()
        self._decode_engine_seconds = 0.0
        self._steps = 0

    def cancel(self) -> None:
        """Let `run` end as soon as it notices; the engine's run in progress is the caller's to stop."""
        self._cancelled.set()
        self._wake.set()

    def run(self) -> Generator[str, None, None]:
        """Yield the text in pieces, never empty; then `metrics` is there.

        Raises:
            ContextLengthError: the prompt does not fit; nothing of it has been computed.
            PromptError, ImageError: the messages or an image cannot be used.
            UsageError: an image was encoded with another bundle.
            Cancelled: an image was cancelled by its owner.
        """
        try:
            reason: StopReason = yield from self._generate()
        except Cancelled:
            if not self._cancelled.is_set():
                raise
            reason = "cancelled"
        self.metrics = self._measure(reason)

    def _generate(self) -> Generator[str, None, StopReason]:
        workshop = self._workshop
        with workshop.trace.span("prompt"):
            prompt = workshop.prompt.encode(self._messages)
        own: list[EncodedImage] = []
        try:
            for source in images_of(self._messages):
                if not isinstance(source, EncodedImage):
                    source = workshop.encode(source)
                    own.append(source)
                elif source.preprocessing != workshop.preprocessing:
                    raise UsageError("an image was encoded by a session of another bundle", "encode it with this session")
                self._images.append(source)
                source.add_listener(self._wake.set)
            self._images_were_done = not own and all(image.done for image in self._images)
            self._wait_for(lambda image: image.planned)
            self.tile_plans = tuple(image.tile_plan for image in self._images)
            self._check_length(prompt)
            self._wait_for(lambda image: image.done)
            rows = PromptRows(prompt, self._images, workshop.decoder)
        finally:
            for image in self._images:
                image.remove_listener(self._wake.set)
            for image in own:
                image.cancel()
        try:
            return (yield from self._decode(rows, self._prefill(rows)))
        finally:
            workshop.resident[:] = [*rows.keys, *self.token_ids][: workshop.decoder.length]

    def _wait_for(self, ready: Callable[[EncodedImage], bool]) -> None:
        for image in self._images:
            while True:
                self._wake.clear()
                self._raise_if_cancelled()
                if ready(image):
                    break
                self._wake.wait()

    def _check_length(self, prompt: PromptTokens) -> None:
        plans = self.tile_plans
        self._prompt_tokens = sum(
            plans[part.index].image_tokens if isinstance(part, ImageSlot) else len(part) for part in prompt.parts
        )
        room = self._workshop.max_length
        # The first token of an answer needs no place of its own: the prompt's last position gives it.
        over = self._prompt_tokens - room
        if over > 0:
            images = sum(plan.image_tokens for plan in plans)
            raise ContextLengthError(
                f"the prompt is {over} tokens too long: {self._prompt_tokens} ({images} of them for images) do not fit into "
                f"{room}",
                "shorten it, drop turns or images, or export with a larger --max-seq-len if the model allows more",
            )

    def _prefill(self, rows: PromptRows) -> NDArray[Any]:
        workshop = self._workshop
        self._reused = _common_prefix(workshop.resident, rows.keys[:-1])
        start = time.perf_counter()
        try:
            return workshop.decoder.prefill(rows, self._reused, self._cancelled.is_set)
        finally:
            self._prefill_seconds = time.perf_counter() - start
            self._computed = workshop.decoder.length - self._reused

    def _decode(self, rows: PromptRows, logits: NDArray[Any]) -> Generator[str, None, StopReason]:
        workshop = self._workshop
        stream = StreamDecoder(workshop.tokenizer)
        seen = {key if isinstance(key, int) else workshop.image_token_id for key in rows.keys}
        sampler = Sampler(self._sampling, seen)
        token = sampler.sample(logits)
        prefilled = workshop.decoder.engine_seconds
        try:
            while True:
                reason = self._reason_before(token)
                if reason is not None:
                    break
                self.token_ids.append(token)
                piece, stopped = self._stop.push(stream.push(token))
                yield from self._emit(piece)
                if stopped:
                    return "stop_string"
                reason = self._reason_after()
                if reason is not None:
                    break
                # From here to the text of the step's token; the first token came from the prefill.
                self._decoding.start()
                token = sampler.sample(workshop.decoder.step(token))
                self._steps += 1
        finally:
            self._decoding.stop()
            self._decode_engine_seconds = workshop.decoder.engine_seconds - prefilled
        piece, stopped = self._stop.push(stream.finish())
        yield from self._emit(piece if stopped else piece + self._stop.finish())
        return "stop_string" if stopped else reason

    def _reason_before(self, token: int) -> StopReason | None:
        if self._cancelled.is_set():
            return "cancelled"
        return "stop_token" if token in self._workshop.stop_token_ids else None

    def _reason_after(self) -> StopReason | None:
        if self._cancelled.is_set():
            return "cancelled"
        if len(self.token_ids) >= self._max_new_tokens:
            return "max_new_tokens"
        return "context_full" if self._workshop.decoder.length >= self._workshop.max_length else None

    def _emit(self, piece: str) -> Generator[str, None, None]:
        if piece:
            if self._first_text is None:
                self._first_text = time.perf_counter()
            self.text += piece
            self._decoding.stop()  # the reader's time is not ours
            yield piece
            self._decoding.start()

    def _raise_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled("the answer was cancelled")

    def _measure(self, reason: StopReason) -> Metrics:
        figures = self._workshop.figures()
        first = self._first_text if self._first_text is not None else time.perf_counter()
        overhead = self._decoding.seconds - self._decode_engine_seconds
        return Metrics(
            load_ms=figures.load_ms,
            vision_ms=sum(image.charge() for image in self._images),
            tiles=sum(plan.encoded_tiles for plan in self.tile_plans),
            image_tokens=sum(plan.image_tokens for plan in self.tile_plans),
            image_was_cached=bool(self._images) and (self._images_were_done or all(image.was_cached for image in self._images)),
            prompt_tokens=self._prompt_tokens,
            kv_prefix_reused=self._reused,
            new_tokens=len(self.token_ids),
            ttft_ms=(first - self._start) * 1000,
            prefill_tok_s=self._computed / self._prefill_seconds if self._prefill_seconds else 0.0,
            decode_tok_s=self._steps / self._decoding.seconds if self._steps else 0.0,
            overhead_ms_per_token=overhead * 1000 / self._steps if self._steps else 0.0,
            peak_rss_mb=peak_resident_mb(),
            rss_before_release_mb=figures.rss_before_release_mb,
            rss_after_release_mb=figures.rss_after_release_mb,
            stop_reason=reason,
            backend_requested=figures.backend_requested,
            backend_actual=figures.backend_actual,
        )


class _Stopwatch:
    """Seconds between `start` and `stop`, over several such spans. Both may come twice."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None


class PromptRows:
    """The prompt's embeddings, made chunk by chunk from token ids and the images' visual tokens.

    Attributes:
        keys: what each position stands for, as in `Workshop.resident`.

    Raises:
        BundleError: the visual tokens are of another size than the decoder's embeddings.
    """

    def __init__(self, prompt: PromptTokens, images: Sequence[EncodedImage], decoder: Decoder) -> None:
        self.keys: list[Hashable] = []
        self._decoder = decoder
        self._parts: list[tuple[int, tuple[int, ...] | NDArray[np.float32]]] = []
        for part in prompt.parts:
            if not isinstance(part, ImageSlot):
                self._parts.append((len(self.keys), part))
                self.keys.extend(part)
                continue
            image = images[part.index]
            if image.tokens.shape[1] != decoder.hidden_size:
                raise BundleError(
                    f"the connector gives tokens of size {image.tokens.shape[1]}, the decoder takes {decoder.hidden_size}",
                    "export the checkpoint again",
                )
            self._parts.append((len(self.keys), image.tokens))
            self.keys.extend((image.key, number) for number in range(len(image.tokens)))

    def __len__(self) -> int:
        return len(self.keys)

    def fill(self, start: int, out: Array) -> None:
        """See `Rows.fill`."""
        end = start + len(out)
        for first, part in self._parts:
            low, high = max(start, first), min(end, first + len(part))
            if low < high:
                piece = part[low - first : high - first]
                out[low - start : high - start] = self._decoder.embed(piece) if isinstance(piece, tuple) else piece


def _common_prefix(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
