"""What each way to make a decoder INT4 costs a real language model: method x scheme, one table.

    python benchmarks/int4_methods.py build/smollm2-llava --work build/int4-methods

Every matrix inside the decoder's layers is quantized; the rest, and all arithmetic, stays in float32, so that nothing but
the weights is judged (`benchmarks/quality.py` judges whole bundles). The text is 8 x 1,024 tokens of English from Python's
own `pydoc_data.topics`, of which calibration sees later parts (`--text built-in`), nothing at all (`--text generated`: what
the checkpoint writes itself) or whatever `--text FILE` holds; `--judge FILE` judges by another text. KL is in nats, from
the float32 model's distribution. Bits per weight count codes, scales and zero points. Minutes are of this machine and
include those of the methods that a method builds on, not the generation of text. Saves `results.md` and `results.json`.
Ends with exit code 1 if the best method misses a goal: in blocks a perplexity within 8% of float32's, per channel a KL of
at most 0.4 times that of rounding.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from pocketvlm.runtime.tokenizer import Tokenizer
from pocketvlm.toolchain import decoders
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.decoders import DECODERS
from pocketvlm.toolchain.prepare import describe
from pocketvlm.toolchain.quantize import calibration_text, distill, gptq
from pocketvlm.toolchain.quantize.block import BlockWeights
from pocketvlm.toolchain.quantize.calibration_text import TEXT_LENGTH, held_out_text
from pocketvlm.toolchain.quantize.scheme import WeightScheme
from pocketvlm.toolchain.quantize.self_text import write_text
from pocketvlm.toolchain.recipe import GENERATED
from pocketvlm.toolchain.spec import DecoderSpec
from pocketvlm.toolchain.torch_ops import EagerCache, TorchOps, Weights
from pocketvlm.toolchain.weights import CanonicalWeights

SCHEMES = {
    "block 32": WeightScheme(),
    "per channel": WeightScheme("channel", symmetric=True),
    "LPBQ, block 32": WeightScheme("lpbq", symmetric=True),
}
ROUNDED, GPTQ, DISTILLED = "round to nearest", "GPTQ", "GPTQ, then distillation"
# The judge's text begins behind the table of contents; calibration's begins at 120,000 characters.
JUDGE_FROM, JUDGE_CHARACTERS = 20_000, 100_000
SEQUENCES, LENGTH = 8, 1024
BUILT_IN = "built-in"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `perplexity_change` and `kl` are against float32; `minutes` on this machine."""

    scheme: str
    method: str
    bits_per_weight: float
    perplexity: float
    perplexity_change: float
    kl: float
    top1: float
    minutes: float


class Judge:
    """Compares a decoder's next-token distribution with the float decoder's, on token ids [sequences, length]."""

    def __init__(self, spec: DecoderSpec, weights: Weights, ids: Tensor) -> None:
        self._spec, self._weights, self._ids = spec, weights, ids
        self._expected = [hidden.half() for hidden in map(self._log_probabilities(weights), ids)]
        self.perplexity = self._perplexity(self._expected)

    def _log_probabilities(self, weights: Weights) -> Callable[[Tensor], Tensor]:
        def run(ids: Tensor) -> Tensor:
            ops = TorchOps(weights)
            ops.attach_cache(self._spec, EagerCache())
            embeddings = ops.embedding(ids[None, :-1], "decoder.embed")
            return decoders.decode(ops, self._spec, embeddings, all_positions=True)[0].log_softmax(-1)

        return run

    def _perplexity(self, found: list[Tensor]) -> float:
        losses = [-part.float().gather(-1, ids[1:, None]).mean() for part, ids in zip(found, self._ids, strict=True)]
        return math.exp(float(torch.stack(losses).mean()))

    def row(self, scheme: str, method: str, bits: float, minutes: float, weights: Weights) -> Row:
        """Run the decoder with `weights`."""
        found = list(map(self._log_probabilities(weights), self._ids))
        divergence, same = [], []
        for mine, half in zip(found, self._expected, strict=True):
            expected = half.float()
            divergence.append(float((expected.exp() * (expected - mine)).sum(-1).mean()))
            same.append(float((expected.argmax(-1) == mine.argmax(-1)).float().mean()))
        perplexity = self._perplexity(found)
        change = perplexity / self.perplexity - 1
        count = len(found)
        return Row(scheme, method, bits, perplexity, change, sum(divergence) / count, sum(same) / count, minutes)


def quantized(
    spec: DecoderSpec, weights: Weights, scheme: WeightScheme, sequences: list[Tensor]
) -> Iterator[tuple[str, dict[str, BlockWeights], dict[str, Tensor], float]]:
    """Method, block weights, tuned norms and minutes, from the quickest method to the slowest."""
    shapes = DECODERS.load(spec.kind).parameters(spec)
    names = [name.removesuffix(".weight") for name, shape in shapes.items() if ".layers." in name and len(shape) == 2]
    start = time.perf_counter()
    rounded = {name: scheme.round(weights(f"{name}.weight")) for name in names}
    yield ROUNDED, rounded, {}, (time.perf_counter() - start) / 60
    start = time.perf_counter()
    known = gptq.quantize_decoder(spec, DECODERS.load(spec.kind).layer, weights, sequences, scheme, _tell("GPTQ"))
    minutes = (time.perf_counter() - start) / 60
    yield GPTQ, known, {}, minutes
    start = time.perf_counter()
    tuned = distill.tune(spec, weights, known, sequences, scheme, distill.Rates(), _tell("distillation"))
    yield DISTILLED, tuned.blocks, tuned.norms, minutes + (time.perf_counter() - start) / 60


def _tell(name: str) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        print(f"\r{name} {done}", end="", file=sys.stderr, flush=True)

    return advance


def bits_per_weight(blocks: dict[str, BlockWeights], scheme: WeightScheme) -> float:
    """Mean over all weights, with scales and zero points."""
    sizes = [len(found.codes) * found.inputs for found in blocks.values()]
    bits = [scheme.bits_per_weight(found.inputs) for found in blocks.values()]
    return sum(size * bit for size, bit in zip(sizes, bits, strict=True)) / sum(sizes)


def measure(arguments: argparse.Namespace) -> tuple[float, list[Row]]:
    """Perplexity of the float decoder, and the table."""
    decoder, weights, tokenizer, judge = opened(arguments.checkpoint, arguments.judge)
    data = calibration_data(arguments, decoder, weights, tokenizer)
    rows = []
    for name in arguments.schemes:
        scheme = SCHEMES[name]
        for method, blocks, norms, minutes in quantized(decoder, weights, scheme, data):
            values = {f"{prefix}.weight": torch.from_numpy(found.dequantize()) for prefix, found in blocks.items()}
            with torch.no_grad():
                mine = distill.overlaid(weights, values | norms)
                rows.append(judge.row(name, method, bits_per_weight(blocks, scheme), minutes, mine))
            print(f"\n{rows[-1]}", file=sys.stderr, flush=True)
    return judge.perplexity, rows


def opened(path: Path, judged: str | None) -> tuple[DecoderSpec, CanonicalWeights, Tokenizer, Judge]:
    """A checkpoint's decoder, and what judges others of its weights: by the file `judged`, or the built-in text."""
    with Checkpoint.open(str(path)) as checkpoint:
        spec, rename = describe(checkpoint)
        weights = CanonicalWeights(checkpoint, spec, rename)
        weights.keep_in_memory(1 << 62)
        tokenizer = Tokenizer.open(checkpoint.path("tokenizer.json"))
    text = held_out_text()[JUDGE_FROM : JUDGE_FROM + JUDGE_CHARACTERS]
    if judged is not None:
        text = calibration_text.read_text(judged)
    ids = torch.tensor(tokenizer.encode(text, special=False)[: SEQUENCES * LENGTH]).reshape(SEQUENCES, LENGTH)
    with torch.no_grad():
        return spec.decoder, weights, tokenizer, Judge(spec.decoder, weights, ids)


def calibration_data(
    arguments: argparse.Namespace, decoder: DecoderSpec, weights: Weights, tokenizer: Tokenizer
) -> list[Tensor]:
    """Embeddings of the text that `--text` names."""
    if arguments.text == GENERATED:
        rows = write_text(
            decoder, weights, sequences=arguments.tokens // TEXT_LENGTH, length=TEXT_LENGTH,
            forbidden=set(tokenizer.added_tokens.values()), tokens=tokenizer.largest_text_id + 1, advance=_tell("text"),
        )  # fmt: skip
    else:
        path = None if arguments.text == BUILT_IN else arguments.text
        ids = calibration_text.token_ids(tokenizer, path, arguments.tokens)
        rows = calibration_text.rows_of(ids, arguments.tokens, TEXT_LENGTH)
    with torch.no_grad():
        return [
            TorchOps(weights).embedding(torch.tensor(rows[start : start + 4]), "decoder.embed")
            for start in range(0, len(rows), 4)
        ]


def missed(rows: list[Row]) -> list[str]:
    """The goals that were not reached, in words."""
    found = {(row.scheme, row.method): row for row in rows}
    goals = []
    blocks, channel = (found.get((scheme, DISTILLED)) for scheme in ("block 32", "per channel"))
    if blocks is not None and not blocks.perplexity_change <= 0.08:
        goals.append(f"block 32: the perplexity rises by {blocks.perplexity_change:.1%}, not at most 8%")
    if channel is not None:
        share = channel.kl / found["per channel", ROUNDED].kl
        if not share <= 0.4:
            goals.append(f"per channel: the KL is {share:.2f} of rounding's, not at most 0.4")
    return goals


def table(perplexity: float, rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| scheme | method | bits per weight | perplexity | change | KL | top-1 | minutes |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines.append(f"| | float32 | 32 | {perplexity:.3f} | | 0 | 100% | |")
    lines += [
        f"| {row.scheme} | {row.method} | {row.bits_per_weight:.3f} | {row.perplexity:.3f} | {row.perplexity_change:+.1%}"
        f" | {row.kl:.4f} | {row.top1:.1%} | {row.minutes:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/int4-methods"))
    parser.add_argument("--text", default=BUILT_IN, help=f"{BUILT_IN!r}, {GENERATED!r} or a file (default: %(default)s)")
    parser.add_argument("--judge", help="a file to judge by instead, of 8,192 tokens or more")
    parser.add_argument("--tokens", type=int, default=8192, help="of calibration text (default: %(default)s)")
    parser.add_argument(
        "--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES), metavar="SCHEME", help=", ".join(SCHEMES)
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    perplexity, rows = measure(arguments)
    goals = missed(rows)
    found = {"float32_perplexity": perplexity, "rows": [asdict(row) for row in rows], "missed": goals}
    arguments.work.mkdir(parents=True, exist_ok=True)
    (arguments.work / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (arguments.work / "results.md").write_text(table(perplexity, rows) + "\n", encoding="utf-8")
    print(json.dumps(found) if arguments.json else table(perplexity, rows))
    for goal in goals:
        print(f"missed: {goal}", file=sys.stderr)
    return 1 if goals else 0


if __name__ == "__main__":
    sys.exit(main())
