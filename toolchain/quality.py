"""Every lowered stage, and the whole, against the eager reference: what `report.json` says of a variant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import GateError
from pocketvlm.runtime.manifest import VariantSpec
from pocketvlm.toolchain import probe
from pocketvlm.toolchain.stages import VISION_STAGES, OpenStages, open_stages

if TYPE_CHECKING:
    from pocketvlm.toolchain.model import EagerModel
    from pocketvlm.toolchain.quantize.calibration import Conversation
    from pocketvlm.toolchain.recipe import Thresholds

REPORT_NAME = "report.json"
# What an export compares: conversations, predictions in each, and a text prompt of so many tokens.
SAMPLES = 2
STEPS = 24
TEXT_PROMPT = 32


@dataclass(frozen=True, slots=True)
class StageQuality:
    """One stage against the eager reference, fed with the reference's own input.

    Attributes:
        cosine: between all outputs, flattened.
        sqnr_db: signal to quantization noise, in dB (infinite becomes 999).
    """

    cosine: float
    sqnr_db: float


@dataclass(frozen=True, slots=True)
class WholeQuality:
    """The bundle from pixels and tokens to logits against the eager reference, over `positions` predictions.

    Attributes:
        logits_kl: mean Kullback-Leibler divergence from the reference's distribution, in nats.
        top1_agreement: share of positions where both put the same token first.
        perplexity, reference_perplexity: on the text part.
    """

    positions: int
    logits_kl: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float


@dataclass(frozen=True, slots=True)
class TaskQuality:
    """Shares of the recipe's questions that the bundle and the eager reference answer right."""

    questions: int
    accuracy: float
    reference_accuracy: float


@dataclass(frozen=True, slots=True)
class TaskSample:
    """One question of a task.

    Attributes:
        steps: most tokens of an answer; a right one is shorter.
        is_right: judges the tokens of an answer.
    """

    conversation: Conversation
    steps: int
    is_right: Callable[[list[int]], bool]


@dataclass(frozen=True, slots=True)
class PartQuality:
    """Graphs that were compiled together.

    Attributes:
        bytes: size of the binary.
        compile_seconds, compiler_bytes: duration, and largest memory of the compiler.
        cosines: agreement between the target's emulation and the form that was measured here, on real inputs, of each graph
            that was emulated.
        float32_cosines: where that was too little, the agreement of either with float32, which decided.
    """

    bytes: int
    compile_seconds: float
    compiler_bytes: int
    cosines: dict[str, float] = field(default_factory=dict)
    float32_cosines: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QualityReport:
    """What `report.json` says of one variant.

    Attributes:
        task: None where the recipe names none.
        parts: what was compiled, for targets that are compiled.
    """

    stages: dict[str, StageQuality]
    whole: WholeQuality
    probes: dict[str, tuple[float, ...]]
    task: TaskQuality | None = None
    parts: dict[str, PartQuality] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values. Figures are rounded: their last digits depend on the number of threads."""
        figures: dict[str, Any] = _rounded(asdict(self))
        return figures


def measure(
    model: EagerModel,
    variant: VariantSpec,
    root: Path,
    samples: Sequence[Conversation],
    text: Sequence[int],
    steps: int,
    task: Iterable[TaskSample] = (),
    advance: Callable[[int], None] = lambda steps: None,
) -> QualityReport:
    """Compare a lowered variant with the eager model.

    Args:
        root: folder that the variant's file names are relative to.
        samples: conversations about real images.
        text: token ids of real text that calibration has not seen.
        steps: predictions to compare per conversation, and twice as many on the text.
        task: questions with known answers.
        advance: called with 1 after each of `measured_steps`.
    """
    with open_stages(variant, root) as stages:
        quality = _stages(model, stages, samples)
        advance(1)
        whole = _whole(model, stages, samples, text, steps, advance)
        answered = _task(model, stages, task, advance)
    return QualityReport(quality, whole, probe.record(variant, root), answered)


def measured_steps(samples: Sequence[Conversation], questions: int) -> int:
    """The stages, each conversation, the text, and each question of the task."""
    return 1 + len(samples) + 1 + questions


def check_thresholds(report: QualityReport, thresholds: Thresholds) -> None:
    """Fail when a figure is below the recipe's threshold.

    Raises:
        GateError: naming the worst figures and the thresholds they missed.
    """
    failures = [
        f"{name} cosine {quality.cosine:.5f} < {thresholds.stage_cosine}"
        for name, quality in report.stages.items()
        if not quality.cosine >= thresholds.stage_cosine
    ]
    if not report.whole.logits_kl <= thresholds.logits_kl:
        failures.append(f"logits KL {report.whole.logits_kl:.4f} > {thresholds.logits_kl}")
    if not report.whole.top1_agreement >= thresholds.top1:
        failures.append(f"top-1 agreement {report.whole.top1_agreement:.3f} < {thresholds.top1}")
    if report.task is not None and not report.task.accuracy >= thresholds.task:
        failures.append(f"task accuracy {report.task.accuracy:.3f} < {thresholds.task}")
    if failures:
        raise GateError(
            "the exported model differs too much from the checkpoint: " + "; ".join(failures),
            "use a better method for the weights in the recipe, or set other thresholds there on purpose",
        )


def _stages(model: EagerModel, stages: OpenStages, samples: Sequence[Conversation]) -> dict[str, StageQuality]:
    pixels = samples[0].pixels
    reference = [pixels, *_chain(model, pixels)]
    found = {}
    for number, name in enumerate(VISION_STAGES):
        got = stages.run(name, np.ascontiguousarray(reference[number].numpy()))
        found[name] = _quality(reference[number + 1].numpy(), got)
    ids = list(range(min(256, model.spec.decoder.vocab_size)))
    found["embed_tokens"] = _quality(model.embed(ids)[0].numpy(), stages.decoder.embed(ids))
    found |= _decoder_quality(model, stages, samples[0])
    return found


def _chain(model: EagerModel, pixels: Any) -> list[Any]:
    patches = model.patch_embed(pixels)
    features = model.vision_blocks(patches)
    return [patches, features, model.connect(features)]


def _decoder_quality(model: EagerModel, stages: OpenStages, sample: Conversation) -> dict[str, StageQuality]:
    from pocketvlm.toolchain.torch_ops import EagerCache

    length = min(sample.embeddings.shape[1], stages.decoder.capacity - 1)
    embeddings = sample.embeddings[:, :length]
    cache = EagerCache()
    reference = model.prefill(embeddings, cache, stages.decoder.chunk_size)
    got = stages.decoder.prefill(embeddings[0].numpy()).copy()
    token = int(reference[0].argmax())
    return {
        "prefill": _quality(reference[0].numpy(), got),
        "decode": _quality(model.decode(model.embed([token]), cache)[0].numpy(), stages.decoder.step(token)),
    }


def _whole(
    model: EagerModel, stages: OpenStages, samples: Sequence[Conversation], text: Sequence[int], steps: int,
    advance: Callable[[int], None],
) -> WholeQuality:  # fmt: skip
    pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for sample in samples:
        followed = list(model.follow(sample.embeddings, steps, stages.decoder.chunk_size))
        reference = [logits.numpy() for _, logits in followed]
        mine = _vision_swapped(model, stages, sample)
        pairs += _compared(reference, _lowered(stages, mine, [token for token, _ in followed]))
        advance(1)
    prompt, rest = list(text[:TEXT_PROMPT]), list(text[TEXT_PROMPT : TEXT_PROMPT + 2 * steps])
    embeddings = model.embed(prompt)
    text_pairs = _compared(_eager(model, embeddings, rest), _lowered(stages, embeddings[0].numpy(), rest))
    targets = rest[: len(text_pairs)]
    pairs += text_pairs
    advance(1)
    divergence = [float((np.exp(a) * (a - b)).sum()) for a, b in pairs]
    same = [int(a.argmax()) == int(b.argmax()) for a, b in pairs]
    losses = [[-pair[side][target] for pair, target in zip(text_pairs, targets, strict=True)] for side in (0, 1)]
    return WholeQuality(
        positions=len(pairs),
        logits_kl=float(np.mean(divergence)),
        top1_agreement=float(np.mean(same)),
        perplexity=_perplexity(losses[1]),
        reference_perplexity=_perplexity(losses[0]),
    )


def _task(
    model: EagerModel, stages: OpenStages, task: Iterable[TaskSample], advance: Callable[[int], None]
) -> TaskQuality | None:
    right: list[tuple[bool, bool]] = []
    for sample in task:
        conversation, steps = sample.conversation, sample.steps
        reference = model.generate(conversation.embeddings, steps, chunk_size=stages.decoder.chunk_size)
        mine = _greedy(stages, _vision_swapped(model, stages, conversation), model.spec.stop_tokens, steps)
        right.append((sample.is_right(mine), sample.is_right(reference)))
        advance(1)
    if not right:
        return None
    accuracy, reference_accuracy = (sum(side) / len(right) for side in zip(*right, strict=True))
    return TaskQuality(len(right), accuracy, reference_accuracy)


def _greedy(stages: OpenStages, embeddings: NDArray[np.float32], stop: Sequence[int], steps: int) -> list[int]:
    logits = stages.decoder.prefill(embeddings)
    tokens: list[int] = []
    while (token := int(logits.argmax())) not in stop and len(tokens) < steps:
        tokens.append(token)
        if stages.decoder.length == stages.decoder.capacity:
            break
        logits = stages.decoder.step(token)
    return tokens


def _perplexity(losses: Sequence[float]) -> float:
    """exp of the mean loss in nats; what float64 cannot hold becomes its largest number."""
    return math.exp(min(float(np.mean(losses)), 709.0))


def _vision_swapped(model: EagerModel, stages: OpenStages, sample: Conversation) -> NDArray[np.float32]:
    """The sample's embeddings [L, H] as the lowered stages give them, visual tokens and text."""
    import torch

    from pocketvlm.toolchain.quantize.calibration import arrange, splice

    values: NDArray[np.float32] = sample.pixels.numpy()
    for name in VISION_STAGES:
        values = stages.run(name, values)
    tokens = torch.from_numpy(arrange(model, values, sample.plan))
    embed = stages.decoder.embed
    swapped: NDArray[np.float32] = splice(lambda ids: torch.from_numpy(embed(ids))[None], sample.tokens, [tokens])[0].numpy()
    return swapped


def _eager(model: EagerModel, embeddings: Any, tokens: Sequence[int]) -> list[NDArray[np.float32]]:
    """The eager model's logits [V] before each of `tokens`, which follow `embeddings` [1, L, H]."""
    import torch

    from pocketvlm.toolchain.torch_ops import EagerCache

    both = [embeddings, model.embed(tokens[:-1])] if len(tokens) > 1 else [embeddings]
    logits: NDArray[np.float32] = model.decode(torch.cat(both, 1), EagerCache(), all_positions=True)[0].numpy()
    return list(logits[embeddings.shape[1] - 1 :])


def _lowered(stages: OpenStages, embeddings: NDArray[np.float32], tokens: Sequence[int]) -> list[NDArray[np.float32]]:
    """The bundle's logits [V] before each of `tokens`, as far as its cache goes; they follow `embeddings` [L, H]."""
    tokens = tokens[: stages.decoder.capacity - len(embeddings)]
    if not tokens:
        return []
    return [stages.decoder.prefill(embeddings).copy(), *(stages.decoder.step(token).copy() for token in tokens[:-1])]


def _compared(
    reference: Sequence[NDArray[np.float32]], mine: Sequence[NDArray[np.float32]]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Log-probabilities of both sides, as far as the bundle's go."""
    return [(_log_softmax(one), _log_softmax(other)) for one, other in zip(reference, mine, strict=False)]


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values = values - values.max()
    result: NDArray[np.float64] = values - math.log(float(np.exp(values).sum()))
    return result


def _quality(reference: NDArray[np.float32], got: NDArray[np.float32]) -> StageQuality:
    a, b = reference.reshape(-1).astype(np.float64), got.reshape(-1).astype(np.float64)
    noise = float(((a - b) ** 2).sum())
    signal = float((a**2).sum())
    cosine = float(a @ b / max(math.sqrt(signal) * float(np.linalg.norm(b)), 1e-30))
    return StageQuality(cosine, 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else 999.0)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
