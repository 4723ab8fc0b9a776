"""What every language model is asked to do here, timed by the same code. Standard library only: it runs in any venv.

Request (standard input): {"tokens": [...], "new_tokens": N, "threads": N, "capacity": positions of the KV cache, and the
model's place, "model"}. In a process of its own: open the model, answer once to warm up, answer once more and measure.
An answer: prefill of all `tokens` from an empty cache until the most likely next token is known, then `new_tokens` steps
of one token each.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class LanguageModel(Protocol):
    """An opened model with its KV cache."""

    def prefill(self, tokens: list[int]) -> int:
        """Empty the cache, compute `tokens`, return the most likely next token."""
        ...

    def step(self) -> int:
        """Append the token returned last; return the most likely next one. Never ends, whatever the token."""
        ...

    def text(self, tokens: list[int]) -> str:
        """What these tokens say."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A model, and what the report should know about it: versions, options."""

    model: LanguageModel
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds of both parts, and the tokens found."""

    prefill_seconds: float
    decode_seconds: float
    tokens: list[int]


def answer(model: LanguageModel, tokens: list[int], new_tokens: int) -> Answer:
    """One prefill and `new_tokens` steps."""
    start = time.perf_counter()
    found = [model.prefill(tokens)]
    middle = time.perf_counter()
    for _ in range(new_tokens):
        found.append(model.step())
    return Answer(middle - start, time.perf_counter() - middle, found)


def serve(open_model: Callable[[dict[str, Any]], Opened]) -> None:
    """Read the request, measure, print the result."""
    request = json.load(sys.stdin)
    tokens, new_tokens = request["tokens"], request["new_tokens"]
    start = time.perf_counter()
    opened = open_model(request)
    load_seconds = time.perf_counter() - start
    answer(opened.model, tokens, new_tokens)
    measured = answer(opened.model, tokens, new_tokens)
    figures = {
        "prefill_tok_s": len(tokens) / measured.prefill_seconds,
        "decode_tok_s": new_tokens / measured.decode_seconds,
        "peak_rss_mb": peak_resident_mb(),
        "load_ms": load_seconds * 1000,
    }
    details = {**opened.details, "continuation": opened.model.text(measured.tokens)}
    print(json.dumps({"figures": figures, "details": details}))


def peak_resident_mb() -> float:
    """Largest resident memory of this process so far, in MiB, mapped files included."""
    try:
        # Not ru_maxrss on Linux: a process inherits that from the one that started it.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024)
