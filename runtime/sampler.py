"""From logits to the next token, in numpy.

The order of the steps and what each keeps follow transformers' `generate`: repetition penalty, temperature, top-k,
top-p, min-p.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import EnvironmentFault, UsageError
from pocketvlm.runtime.manifest import LEAST_TEMPERATURE

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: keep so many of the most likely tokens; 0 keeps all.
        top_p: keep the fewest most likely tokens that have this much probability together; 1 keeps all.
        min_p: keep tokens at least this many times as likely as the most likely one; 0 keeps all.
        repetition_penalty: above 1, tokens that occur in the context become less likely (CTRL, arXiv:1909.05858).
        seed: the same seed, options and logits give the same tokens; None is different each time.

    Raises:
        UsageError: a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            # Less would overflow float32 when the logits are divided by it.
            (
                "temperature",
                self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < math.inf,
                "0, or a finite number of 0.0001 or more",
            ),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        ):
            if not fits:
                raise UsageError(f"{name} is {getattr(self, name)}", f"it must be {wanted}")


class Sampler:
    """Draws the tokens of one answer.

    Args:
        options: how to choose.
        context: token ids of the prompt, for the repetition penalty.
    """

    def __init__(self, options: SamplingOptions, context: Iterable[int] = ()) -> None:
        self._options = options
        self._generator = np.random.Generator(np.random.PCG64(options.seed))
        self._seen = set(context) if options.repetition_penalty != 1 else set()

    def sample(self, logits: Logits) -> int:
        """The next token for logits [vocabulary], which are left as they are.

        Raises:
            EnvironmentFault: the logits are not numbers.
        """
        options = self._options
        if options.repetition_penalty != 1:
            logits = penalize_repetition(logits, self._seen, options.repetition_penalty)
        # NaN counts as the highest for argmax.
        token = int(logits.argmax())
        if not math.isfinite(logits[token]):
            raise EnvironmentFault("the decoder's logits are not finite numbers", "run `pocketvlm verify` on the bundle")
        if options.temperature > 0:
            token = self._draw(keep_probable(logits / np.float32(options.temperature), options))
        if options.repetition_penalty != 1:
            self._seen.add(token)
        return token

    def _draw(self, scores: Logits) -> int:
        candidates = np.flatnonzero(scores > -np.inf)
        cumulative = np.cumsum(_softmax(scores[candidates].astype(np.float64)))
        drawn = int(np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right"))
        return int(candidates[min(drawn, len(candidates) - 1)])


def keep_probable(scores: Logits, options: SamplingOptions) -> Logits:
    """Apply top-k, top-p and min-p to scores [vocabulary]; what falls out becomes -inf."""
    if 0 < options.top_k < len(scores):
        scores = keep_top_k(scores, options.top_k)
    if options.top_p < 1:
        scores = keep_top_p(scores, options.top_p)
    if options.min_p > 0:
        scores = keep_min_p(scores, options.min_p)
    return scores


def penalize_repetition(logits: Logits, seen: Iterable[int], penalty: float) -> Logits:
    """Divide positive and multiply negative logits of the tokens in `seen` by `penalty`; returns a copy."""
    tokens = np.fromiter(seen, np.int64)
    tokens = tokens[tokens < len(logits)]
    result = logits.copy()
    chosen = result[tokens]
    result[tokens] = np.where(chosen < 0, chosen * np.float32(penalty), chosen / np.float32(penalty))
    return result


def keep_top_k(scores: Logits, count: int) -> Logits:
    """Set all but the `count` highest scores to -inf; scores equal to the last one kept stay too."""
    smallest = np.partition(scores, len(scores) - count)[len(scores) - count]
    return np.where(scores < smallest, np.float32(-np.inf), scores)


def keep_top_p(scores: Logits, share: float) -> Logits:
    """Set the least likely tokens, with at most 1 - `share` of the probability together, to -inf; one always stays."""
    candidates = np.flatnonzero(scores > -np.inf)
    probabilities = _softmax(scores[candidates])
    likely, mass = _most_likely(probabilities, share)
    order = likely[np.argsort(probabilities[likely], kind="stable")]
    dropped = np.cumsum(probabilities[order]) + np.float32(1 - mass) <= 1 - share
    dropped[-1] = False
    result = np.full_like(scores, -np.inf)
    kept = candidates[order[~dropped]]
    result[kept] = scores[kept]
    return result


def keep_min_p(scores: Logits, share: float) -> Logits:
    """Set tokens less likely than `share` times the most likely one to -inf."""
    probabilities = _softmax(scores)
    return np.where(probabilities < np.float32(share) * probabilities.max(), np.float32(-np.inf), scores)


def _most_likely(probabilities: Logits, share: float) -> tuple[NDArray[np.intp], float]:
    """Indices of the most likely tokens that have more than `share` together, perhaps some too many, and their sum.

    A block of a few hundred nearly always suffices, and sorting it costs a hundredth of sorting a vocabulary.
    """
    count = 256
    while count < len(probabilities):
        # By value: the order in which argpartition leaves the indices, and so the sum's rounding, depends on the processor.
        smallest = np.partition(probabilities, len(probabilities) - count)[len(probabilities) - count]
        block = np.flatnonzero(probabilities >= smallest)
        mass = float(probabilities[block].sum())
        if mass > share:
            return block, mass
        count *= 8
    return np.arange(len(probabilities)), 1.0


def _softmax(values: NDArray[Any]) -> NDArray[Any]:
    exponentials = np.exp(values - values.max())
    shares: NDArray[Any] = exponentials / exponentials.sum()
    return shares
