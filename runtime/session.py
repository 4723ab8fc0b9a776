"""Opens a bundle and answers questions about images.

with VlmSession.open("build/demo-bundle") as session:
    screen = session.encode("screen.png")          # returns at once
    question = {"type": "text", "text": "What is the battery level?"}
    messages = [{"role": "user", "content": [{"type": "image", "image": screen}, question]}]
    for piece in session.chat(messages):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self, get_args

from pocketvlm.errors import BundleError, UsageError
from pocketvlm.runtime.answer import Answer, Messages, Workshop
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.chat import ChatStream, Turn
from pocketvlm.runtime.decoder import Decoder
from pocketvlm.runtime.decoder_contract import stage_names
from pocketvlm.runtime.encoding import EncodedImage, ImageEncoder, Release, ReleasePolicy
from pocketvlm.runtime.engines import load_engine
from pocketvlm.runtime.engines.protocol import EngineSession
from pocketvlm.runtime.image import ImageSource
from pocketvlm.runtime.manifest import Manifest, VariantSpec
from pocketvlm.runtime.metrics import SessionFigures
from pocketvlm.runtime.placement import backend_name
from pocketvlm.runtime.prompt import PromptBuilder
from pocketvlm.runtime.sampler import SamplingOptions
from pocketvlm.runtime.tokenizer import Tokenizer
from pocketvlm.runtime.trace import Trace
from pocketvlm.runtime.vision import VisionEncoder

DEFAULT_IMAGE_CACHE_MB = 64
MOST_THREADS_PER_PROCESSOR = 4

__all__ = ["ChatStream", "EncodedImage", "VlmSession"]


class VlmSession:
    """One variant of a bundle, in memory. Use `VlmSession.open`.

    Images are encoded on a thread of their own, also while an answer is being generated. One answer at a time.
    `close` may be called from any thread.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: VariantSpec,
        *,
        requested: str | None = None,
        threads: int | None = None,
        vision_batch: int | None = None,
        overlap: bool = True,
        release: ReleasePolicy = "keep",
        max_length: int | None = None,
        image_cache_mb: int = DEFAULT_IMAGE_CACHE_MB,
        trace: Trace | None = None,
        started: float | None = None,
    ) -> None:
        _check_options(variant, threads, vision_batch, release, max_length)
        if image_cache_mb < 0:
            raise UsageError(f"image_cache_mb is {image_cache_mb}", "it must be 0 or more")
        started = time.perf_counter() if started is None else started
        self._bundle = bundle
        self._variant = variant
        self._requested = requested
        self._trace = trace if trace is not None else Trace(enabled=False)
        self._closing = threading.Lock()
        self._closed = False
        manifest = bundle.manifest
        sessions = _Sessions(bundle, variant, threads)
        vision = VisionEncoder(
            variant,
            # The producer's patch embedding is small, and shares the cores with the stages that it feeds.
            lambda stage: sessions.open(stage, 1 if overlap and stage in variant.chain("patch_embed") else threads),
            batch=vision_batch or variant.vision_batch,
            overlap=overlap,
            trace=self._trace,
        )
        self._sessions = sessions
        with self._trace.span("load"):
            tokenizer = Tokenizer.of(bundle)
            prompt = PromptBuilder(manifest.prompt, tokenizer, manifest.tokenizer.add_special_tokens)
            try:
                decoder = Decoder(variant, {name: sessions.shared(name) for name in stage_names(variant)}, self._trace)
                vision.load()
            except BaseException:
                sessions.close()
                raise
        self._encoder = ImageEncoder(bundle, variant, vision, release, image_cache_mb << 20, self._trace)
        self._turn = Turn(decoder)
        self._load_ms = (time.perf_counter() - started) * 1000
        self._workshop = Workshop(
            decoder=decoder,
            prompt=prompt,
            tokenizer=tokenizer,
            encode=self._encoder.encode,
            preprocessing=self._encoder.preprocessing,
            stop_token_ids=frozenset(manifest.tokenizer.stop_token_ids),
            image_token_id=manifest.tokenizer.image_token_id,
            max_length=min(decoder.capacity, max_length or decoder.capacity),
            figures=self._figures,
            trace=self._trace,
            resident=[],
        )

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        target: str | None = None,
        threads: int | None = None,
        vision_batch: int | None = None,
        overlap: bool = True,
        release: ReleasePolicy = "keep",
        verify: bool = True,
        max_length: int | None = None,
        image_cache_mb: int = DEFAULT_IMAGE_CACHE_MB,
        trace: Trace | None = None,
    ) -> Self:
        """Open a bundle (directory or uncompressed zip) and load one of its variants.

        Args:
            target: which variant, by target or name, or two of them; see `Bundle.variant`.
            threads: threads of one operator; None leaves the choice to the engine.
            vision_batch: tiles per batch; None takes the variant's own.
            overlap: run the patch embedding of the next batches beside the vision blocks of the current one.
            release: when the vision stages leave memory: never ("keep"), when no image waits to be encoded
                ("after_encode"), or then if memory is short ("on_pressure"). A new image loads them again.
            verify: compare every file's sha256 with the manifest before anything is loaded.
            max_length: most positions of the KV cache that prompt and answer may take; None takes all. The answer's last
                token takes none.
            image_cache_mb: most memory, in MiB, for the visual tokens of images that may be shown again; 0 keeps none.
            trace: collects what ran when.

        Raises:
            BundleError: the bundle is incomplete, damaged, unsafe or from a newer schema.
            UsageError: an option outside its range, or no such target.
            EnvironmentFault: this machine cannot run it.
        """
        started = time.perf_counter()
        bundle = Bundle.open(path, verify=verify)
        try:
            with bundle.named():
                return cls(
                    bundle,
                    bundle.variant(target),
                    requested=target,
                    threads=threads,
                    vision_batch=vision_batch,
                    overlap=overlap,
                    release=release,
                    max_length=max_length,
                    image_cache_mb=image_cache_mb,
                    trace=trace,
                    started=started,
                )
        except BaseException:
            bundle.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """What the bundle's `manifest.json` says."""
        return self._bundle.manifest

    @property
    def variant(self) -> VariantSpec:
        """The variant in use."""
        return self._variant

    def encode(self, source: ImageSource) -> EncodedImage:
        """Begin to encode an image and return at once.

        An image whose pixels were encoded before is taken from the session's cache.

        Args:
            source: a path, the bytes of an image file, a Pillow image or a uint8 array [height, width, 3]. It must not be
                changed until the result's `tile_plan` is known.

        Raises:
            UsageError: the session is closed.
            ImageError: not a kind of source at all. What is wrong with the image itself is raised by the result's methods.
        """
        return self._encoder.encode(source)

    def chat(
        self,
        messages: Messages,
        *,
        max_new_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> ChatStream:
        """Answer a conversation; the returned stream computes the text while it is read.

        Positions that this conversation shares with the one before are not computed again.

        Args:
            messages: {"role", "content"} each; a content is a string or a list of {"type": "text", "text": ...} and
                {"type": "image", "image": ...}, the latter an `EncodedImage` or what `encode` takes.
            temperature, top_k, top_p, min_p, repetition_penalty: see `SamplingOptions`; None takes the checkpoint's default.
            stop: texts that end the answer; they are not part of it.

        Raises:
            UsageError: an option outside its range, the session is closed or still answering another question.
        """
        default = self._bundle.manifest.generation
        sampling = SamplingOptions(
            temperature=default.temperature if temperature is None else temperature,
            top_k=default.top_k if top_k is None else top_k,
            top_p=default.top_p if top_p is None else top_p,
            min_p=default.min_p if min_p is None else min_p,
            repetition_penalty=default.repetition_penalty if repetition_penalty is None else repetition_penalty,
            seed=seed,
        )
        return ChatStream(self._turn, Answer(self._workshop, messages, max_new_tokens, sampling, stop))

    def release_vision(self) -> Release | None:
        """Drop the vision stages from memory now, after the image in work; None when they are not loaded.

        Raises:
            UsageError: the session is closed.
        """
        if self._closed:
            raise UsageError("the session is closed", "open it again")
        return self._encoder.release()

    def close(self) -> None:
        """Cancel what is going on, wait until it has stopped, and free everything. Closing twice is allowed."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._turn.close()
            self._encoder.close()
            self._sessions.close()
            self._bundle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def _figures(self) -> SessionFigures:
        latest = self._encoder.latest_release
        return SessionFigures(
            load_ms=self._load_ms,
            rss_before_release_mb=latest.before_mb if latest else None,
            rss_after_release_mb=latest.after_mb if latest else None,
            backend_requested=self._requested,
            backend_actual=backend_name(self._variant),
        )


class _Sessions:
    """Opens stages; those of the decoder that are the same session, once.

    Vision stages are opened again after a release. Their files must be those that were verified when the bundle was opened:
    an export may have put another bundle in its place.
    """

    def __init__(self, bundle: Bundle, variant: VariantSpec, threads: int | None) -> None:
        self._bundle = bundle
        self._variant = variant
        self._threads = threads
        self._engines = {name: load_engine(name) for name in {variant.engine_of(stage)[0] for stage in variant.stages}}
        self._shared: dict[object, EngineSession] = {}
        self._verified = {stage: self._files_of(stage) for stage in variant.stages}

    def open(self, stage: str, threads: int | None) -> EngineSession:
        """Open one stage.

        Raises:
            BundleError: its files are no longer those of the opened bundle, or cannot be loaded.
            EnvironmentFault: the engine fails.
        """
        if self._files_of(stage) != self._verified[stage]:
            raise BundleError(
                f"{self._bundle.name}: replaced or changed since it was opened", "close the session and open it again"
            )
        path = self._bundle.path(self._variant.stages[stage].file)
        engine, options = self._variant.engine_of(stage)
        return self._engines[engine].open(path, options, threads)

    def _files_of(self, stage: str) -> list[tuple[int, int, int, int] | None]:
        """What tells each file of a stage from any other that may stand in its place."""
        spec = self._variant.stages[stage]
        return [_identity(self._bundle.path(name)) for name in (spec.file, *spec.external_data)]

    def shared(self, stage: str) -> EngineSession:
        key = self._variant.session_key(stage)
        if key not in self._shared:
            # A table look-up gains nothing from threads.
            self._shared[key] = self.open(stage, 1 if stage == "embed_tokens" else self._threads)
        return self._shared[key]

    def close(self) -> None:
        for session in self._shared.values():
            session.close()
        self._shared.clear()


def _identity(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_options(
    variant: VariantSpec, threads: int | None, vision_batch: int | None, release: str, max_length: int | None
) -> None:
    for name, value in (("threads", threads), ("vision_batch", vision_batch), ("max_length", max_length)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}", "it must be 1 or more")
    most = MOST_THREADS_PER_PROCESSOR * (os.cpu_count() or 1)
    if threads is not None and threads > most:
        raise UsageError(f"threads is {threads}", f"it must be at most {most} on this machine of {os.cpu_count()} processors")
    if release not in get_args(ReleasePolicy):
        raise UsageError(f"release is {release!r}", f"it must be one of {', '.join(get_args(ReleasePolicy))}")
    fixed = variant.stages[variant.chain("vision_encoder")[0]].inputs[0].shape[0]
    if vision_batch is not None and isinstance(fixed, int) and vision_batch % fixed:
        raise UsageError(
            f"vision_batch is {vision_batch}",
            f"this variant is compiled for batches of {fixed}; leave it out or take a multiple",
        )
