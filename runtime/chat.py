"""Whose turn it is, and the stream that a caller reads an answer from."""

from __future__ import annotations

import threading
from typing import Self

from pocketvlm.errors import UsageError
from pocketvlm.runtime.answer import Answer
from pocketvlm.runtime.decoder import Decoder
from pocketvlm.runtime.metrics import Metrics
from pocketvlm.runtime.tiling import TilePlan


class Turn:
    """One answer at a time per decoder."""

    def __init__(self, decoder: Decoder) -> None:
        # `engine` is held while the engine may run, so that `close` can wait for it. Both are reentrant, because a stream
        # may be dropped, and so closed, at any point of the thread that holds them.
        self.engine = threading.RLock()
        self._decoder = decoder
        self._lock = threading.RLock()
        self._active: Answer | None = None
        self._closed = False

    def begin(self, answer: Answer) -> None:
        """Give the turn to `answer`.

        Raises:
            UsageError: another answer has it, or the session is closed.
        """
        with self._lock:
            if self._closed:
                raise UsageError("the session is closed", "open it again")
            if self._active is not None:
                raise UsageError(
                    "the session is still answering another question",
                    "read that answer to its end or close it first, or open a second session",
                )
            self._active = answer

    def holds(self, answer: Answer) -> bool:
        """Whether it is that answer's turn."""
        return self._active is answer

    def end(self, answer: Answer) -> None:
        """Take the turn back."""
        with self._lock:
            if self._active is answer:
                self._active = None

    def cancel(self, answer: Answer) -> None:
        """Cancel that answer, and the engine's run in progress if it is that answer's."""
        answer.cancel()
        with self._lock:
            if self._active is answer:
                self._decoder.cancel()

    def close(self) -> None:
        """Begin no answer any more, cancel the one in progress, and wait until the engine rests."""
        with self._lock:
            self._closed = True
            active = self._active
        if active is not None:
            self.cancel(active)
        with self.engine:
            pass


class ChatStream:
    """The pieces of one answer, computed while they are read; made by `VlmSession.chat`.

    A session answers one question at a time: read the stream to its end or close it (a `with` block, or dropping the
    last reference, closes it, too). `cancel` may be called from any thread, everything else from one.
    """

    def __init__(self, turn: Turn, answer: Answer) -> None:
        self._turn = turn
        self._answer = answer
        self._pieces = answer.run()
        turn.begin(answer)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        """The next piece of text, never empty.

        Raises:
            ContextLengthError: the prompt does not fit; nothing of it has been computed.
            PromptError, ImageError: the messages or an image cannot be used.
            UsageError: an image was encoded with another bundle.
            Cancelled: an image of the prompt was cancelled by its owner.
        """
        try:
            with self._turn.engine:
                return next(self._pieces)
        except BaseException:
            self._turn.end(self._answer)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._turn.holds(self._answer):
            self.close()

    def cancel(self) -> None:
        """End the answer within one chunk or token: the iteration stops, with stop reason "cancelled"."""
        self._turn.cancel(self._answer)

    def close(self) -> None:
        """Stop here and let the session answer the next question."""
        with self._turn.engine:
            self._pieces.close()
        self._turn.end(self._answer)

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._answer.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The answer's tokens so far, without the stop token."""
        return tuple(self._answer.token_ids)

    @property
    def tile_plans(self) -> tuple[TilePlan, ...]:
        """The plans of the prompt's images in their order; empty until all have been opened."""
        return self._answer.tile_plans

    @property
    def metrics(self) -> Metrics:
        """What the answer cost.

        Raises:
            UsageError: the answer was not read to its end, or it failed.
        """
        if self._answer.metrics is None:
            raise UsageError("the answer has no metrics", "read the stream to its end first")
        return self._answer.metrics
