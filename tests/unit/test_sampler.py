"""Each step against transformers' logits processors, and the whole against `generate`'s order of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pocketvlm.errors import EnvironmentFault, UsageError
from pocketvlm.runtime.sampler import (
    Sampler,
    SamplingOptions,
    keep_min_p,
    keep_probable,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
)

SEEDS = range(20)
NO_IDS = torch.zeros((1, 0), dtype=torch.long)


def logits(seed: int, size: int = 500) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3, size=size).astype(np.float32)


def theirs(processor: object, scores: np.ndarray, ids: torch.Tensor = NO_IDS) -> np.ndarray:
    return processor(ids, torch.from_numpy(scores.copy())[None])[0].numpy()  # type: ignore[operator]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 7, 50, 499])
def test_top_k_equals_transformers(seed: int, k: int) -> None:
    np.testing.assert_array_equal(keep_top_k(logits(seed), k), theirs(TopKLogitsWarper(k), logits(seed)))


def test_top_k_keeps_ties_as_transformers_does() -> None:
    scores = np.array([1, 3, 2, 2, 0], np.float32)
    np.testing.assert_array_equal(keep_top_k(scores, 2), theirs(TopKLogitsWarper(2), scores))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999])
def test_top_p_equals_transformers(seed: int, p: float) -> None:
    np.testing.assert_array_equal(keep_top_p(logits(seed), p), theirs(TopPLogitsWarper(p), logits(seed)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.99])
def test_top_p_of_a_large_vocabulary_equals_transformers(seed: int, p: float) -> None:
    scores = logits(seed, 20_000)
    np.testing.assert_array_equal(keep_top_p(scores, p), theirs(TopPLogitsWarper(p), scores))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [0.001, 0.1, 0.9, 1.0])
def test_min_p_equals_transformers(seed: int, p: float) -> None:
    np.testing.assert_array_equal(keep_min_p(logits(seed), p), theirs(MinPLogitsWarper(p), logits(seed)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("penalty", [0.8, 1.3])
def test_repetition_penalty_equals_transformers(seed: int, penalty: float) -> None:
    context = [3, 3, 499, 17, 3, 100]
    expected = theirs(RepetitionPenaltyLogitsProcessor(penalty), logits(seed), torch.tensor([context]))
    scores = logits(seed)
    np.testing.assert_array_equal(penalize_repetition(scores, set(context), penalty), expected)
    np.testing.assert_array_equal(scores, logits(seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_all_steps_in_generates_order(seed: int) -> None:
    context = list(range(0, 500, 3))
    chain = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            TemperatureLogitsWarper(0.7),
            TopKLogitsWarper(60),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.05),
        ]
    )
    expected = theirs(chain, logits(seed), torch.tensor([context]))
    options = SamplingOptions(0.7, 60, 0.9, 0.05, 1.2)
    found = keep_probable(penalize_repetition(logits(seed), context, 1.2) / np.float32(0.7), options)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_draws_follow_the_probabilities() -> None:
    shares = np.array([0.5, 0.0, 0.3, 0.2])
    with np.errstate(divide="ignore"):
        scores = np.log(shares).astype(np.float32)
    sampler = Sampler(SamplingOptions(temperature=1, seed=5))
    drawn = np.bincount([sampler.sample(scores) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(drawn, shares, atol=0.015)
    assert drawn[1] == 0


def test_the_same_seed_draws_the_same_tokens_and_another_does_not() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1, top_k=100, seed=seed))
        return [sampler.sample(logits(index)) for index in range(40)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_greedy_takes_the_highest_and_the_first_of_equals() -> None:
    assert Sampler(SamplingOptions()).sample(np.array([1, 5, 5, 2], np.float32)) == 1


def test_greedy_avoids_what_the_penalty_pushes_down() -> None:
    sampler = Sampler(SamplingOptions(repetition_penalty=2), context=[1])
    scores = np.array([3.0, 5, 4, -1], np.float32)
    assert [sampler.sample(scores) for _ in range(3)] == [2, 0, 1]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_refused(temperature: float, bad: float) -> None:
    scores = np.array([1, bad, 2], np.float32)
    with pytest.raises(EnvironmentFault, match="not finite"):
        Sampler(SamplingOptions(temperature=temperature)).sample(scores)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": 1e-300},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0},
        {"seed": -1},
    ],
)
def test_options_outside_their_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        SamplingOptions(**wrong)  # type: ignore[arg-type]
