"""Images to visual tokens, on a thread of their own, with a cache and a policy for the vision stages' memory."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketvlm.errors import Cancelled, ImageError, UsageError
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.image import image_digest, load_image, make_tiles
from pocketvlm.runtime.manifest import VariantSpec
from pocketvlm.runtime.memory import return_freed_memory
from pocketvlm.runtime.metrics import available_share, resident_mb
from pocketvlm.runtime.tiling import TilePlan, arrange_tokens, plan_tiles
from pocketvlm.runtime.trace import Trace
from pocketvlm.runtime.vision import ImageCache, VisionEncoder
from pocketvlm.runtime.vision_contract import stage_names

ReleasePolicy = Literal["keep", "after_encode", "on_pressure"]

# "on_pressure": below this share of available memory, Android's low-memory killer and Linux' reclaim become busy.
PRESSURE_SHARE = 0.15


class EncodedImage:
    """An image on its way to visual tokens. Made by `VlmSession.encode`; may be used in any number of messages."""

    def __init__(self, stop_runs: Callable[[EncodedImage], None], preprocessing: str) -> None:
        self._stop_runs = stop_runs
        self._charged = False
        self._changed = threading.Condition()
        self._cancelled = False
        self._done = False
        self._error: BaseException | None = None
        self._plan: TilePlan | None = None
        self._tokens: NDArray[np.float32] | None = None
        self._listeners: list[Callable[[], None]] = []
        self.key = ""
        self.preprocessing = preprocessing
        self.was_cached = False
        self.vision_ms = 0.0

    @property
    def done(self) -> bool:
        """Whether the work has ended, well or not."""
        return self._done

    @property
    def tile_plan(self) -> TilePlan:
        """How the image is cut; waits until the image has been opened.

        Raises:
            Cancelled, ImageError, ...: what stopped the work before that.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._plan is not None or self._done)
            if self._plan is None:
                raise self._failure()
            return self._plan

    @property
    def tokens(self) -> NDArray[np.float32]:
        """Visual tokens float32 [image_tokens, H]; waits for them.

        Raises:
            Cancelled, ImageError, ...: what stopped the work.
        """
        self.wait()
        if self._tokens is None:
            raise self._failure()
        return self._tokens

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the work, at most `timeout` seconds; returns whether it has ended.

        Raises:
            Cancelled, ImageError, ...: what stopped the work.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._done, timeout)
            if self._done and self._tokens is None:
                raise self._failure()
            return self._done

    def cancel(self) -> None:
        """Stop the work between two batches or, where the engine can, within one. After its end, no effect."""
        with self._changed:
            if self._done:
                return
            self._cancelled = True
        self._stop_runs(self)

    def charge(self) -> float:
        """Milliseconds that the encoding took, to the first answer that asks after its end; 0 to others."""
        if not self._done:
            return 0.0
        charged, self._charged = self._charged, True
        return 0.0 if charged else self.vision_ms

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` from now on whenever the plan becomes known and when the work ends."""
        with self._changed:
            self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Undo one `add_listener`."""
        with self._changed:
            self._listeners.remove(listener)

    @property
    def planned(self) -> bool:
        """Whether `tile_plan` would return or raise at once."""
        return self._plan is not None or self._done

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called in time."""
        return self._cancelled

    def _failure(self) -> BaseException:
        return self._error if self._error is not None else Cancelled("the image encoding was cancelled")

    def _set_plan(self, key: str, plan: TilePlan) -> None:
        self.key = key
        self._publish(plan=plan)

    def _finish(self, tokens: NDArray[np.float32] | None, error: BaseException | None) -> None:
        self._publish(tokens=tokens, error=error, done=True)

    def _publish(
        self,
        *,
        plan: TilePlan | None = None,
        tokens: NDArray[np.float32] | None = None,
        error: BaseException | None = None,
        done: bool = False,
    ) -> None:
        with self._changed:
            self._plan = plan or self._plan
            self._tokens, self._error, self._done = tokens, error, done
            listeners = list(self._listeners)
            self._changed.notify_all()
        for listener in listeners:
            listener()


@dataclass(frozen=True, slots=True)
class Release:
    """Resident memory around a release of the vision stages, in MiB; None where the system does not tell."""

    before_mb: float | None
    after_mb: float | None


class ImageEncoder:
    """Encodes images one after the other on its own thread.

    Args:
        bundle, variant: specs and, for the image cache's key, the hashes of everything that shapes the tokens.
        vision: the stages.
        cache_bytes: most memory of the image cache.
        policy: "keep" the stages in memory, release them "after_encode" when no image waits, or "on_pressure": then, if
            less than `PRESSURE_SHARE` of the machine's memory is available (where the system tells; Linux, Android).
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: VariantSpec,
        vision: VisionEncoder,
        policy: ReleasePolicy,
        cache_bytes: int,
        trace: Trace,
    ) -> None:
        self._manifest = bundle.manifest
        self._vision = vision
        self._policy = policy
        self._trace = trace
        self._newline = _read_newline(bundle)
        # Of everything but the picture that shapes its tokens: the rules and the vision stages.
        self.preprocessing = _preprocessing_hash(bundle, variant)
        self._cache = ImageCache(cache_bytes)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vision")
        self._lock = threading.Lock()
        self._pending: list[EncodedImage] = []
        self._working: EncodedImage | None = None
        self._closed = False
        self.latest_release: Release | None = None

    def encode(self, source: Any) -> EncodedImage:
        """Queue an image and return at once.

        Raises:
            UsageError: the encoder is closed.
            ImageError: `source` is of another type than `ImageSource`.
        """
        if not isinstance(source, str | Path | bytes | Image.Image | np.ndarray):
            raise ImageError(
                f"an image cannot be read from {type(source).__name__}", "pass a path, bytes, a Pillow image or an array"
            )
        image = EncodedImage(self._stop_runs, self.preprocessing)
        with self._lock:
            if self._closed:
                raise UsageError("the session is closed", "open it again")
            self._pending.append(image)
            self._pool.submit(self._work, image, source)
        return image

    def release(self) -> Release | None:
        """Drop the vision stages from memory, after the image in work; None when they are not loaded.

        The next image that is not in the cache loads them again.
        """
        if not self._vision.loaded:
            return None
        with self._trace.span("release"):
            before = resident_mb()
            self._vision.release()
            return_freed_memory()
            self.latest_release = Release(before, resident_mb())
        return self.latest_release

    def close(self) -> None:
        """Cancel all images and free the stages. Thread-safe; closing twice is allowed."""
        with self._lock:
            self._closed = True
            pending = list(self._pending)
        for image in pending:
            image.cancel()
        self._pool.shutdown()
        self._vision.release()

    def _stop_runs(self, image: EncodedImage) -> None:
        with self._lock:
            if self._working is image:
                self._vision.cancel()

    def _work(self, image: EncodedImage, source: Any) -> None:
        tokens, failure = None, None
        with self._lock:
            self._working = image
        try:
            tokens = self._encode(image, source)
        except BaseException as error:
            failure = error
            _forget_locals(error)
        with self._lock:
            self._working = None
            self._pending.remove(image)
            idle = not self._pending
        # Before the image is reported as done, so that whoever waited sees the memory released.
        try:
            if idle and self._should_release():
                self.release()
        except BaseException as error:
            tokens, failure = None, failure or error
        image._finish(tokens, failure)

    def _should_release(self) -> bool:
        if self._policy == "on_pressure":
            share = available_share()
            return share is not None and share < PRESSURE_SHARE
        return self._policy == "after_encode"

    def _encode(self, image: EncodedImage, source: Any) -> NDArray[np.float32]:
        manifest = self._manifest
        start = time.perf_counter()
        _raise_if_cancelled(image)
        with self._trace.span("open image"):
            picture = load_image(source, manifest.image)
            plan = plan_tiles(picture.width, picture.height, manifest.tiling, manifest.image_tokens)
            key = hashlib.sha256(f"{self.preprocessing}:{image_digest(picture)}".encode()).hexdigest()
        image._set_plan(key, plan)
        cached = self._cache.get(key)
        if cached is not None:
            image.was_cached = True
            return cached
        _raise_if_cancelled(image)
        with self._trace.span("cut tiles", tiles=plan.encoded_tiles):
            tiles = make_tiles(picture, plan, manifest.tiling, manifest.image, manifest.image_tokens.thumbnail_first)
        features = self._vision.encode(tiles, lambda: image.cancelled)
        with self._trace.span("arrange tokens", tokens=plan.image_tokens):
            tokens = arrange_tokens(features, plan, manifest.image_tokens, self._newline)
        tokens.flags.writeable = False
        self._cache.put(key, tokens)
        image.vision_ms = (time.perf_counter() - start) * 1000
        return tokens


def _forget_locals(error: BaseException | None) -> None:
    """Let go of pixels and graphs: whoever keeps the image keeps the error, and with it the frames of its traceback."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _raise_if_cancelled(image: EncodedImage) -> None:
    if image.cancelled:
        raise Cancelled("the image encoding was cancelled")


def _read_newline(bundle: Bundle) -> NDArray[np.float32] | None:
    name = bundle.manifest.image_tokens.newline
    return np.fromfile(bundle.path(name), "<f4").astype(np.float32) if name else None


def _preprocessing_hash(bundle: Bundle, variant: VariantSpec) -> str:
    manifest = bundle.manifest
    names = [manifest.image_tokens.newline] if manifest.image_tokens.newline else []
    for stage in (variant.stages[name] for name in stage_names(variant)):
        names += [stage.file, *stage.external_data]
    shaping = [asdict(manifest.tiling), asdict(manifest.image), asdict(manifest.image_tokens), list(map(bundle.sha256, names))]
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()
