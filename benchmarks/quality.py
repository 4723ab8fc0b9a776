"""What INT4 weights and the INT8 cache cost, measured through exported bundles on text that calibration never saw.

    python benchmarks/quality.py build/smollm2-llava --work build/quality

Exports the checkpoint several times (fp32, round-to-nearest, GPTQ with a float cache, GPTQ with the INT8 cache, GPTQ
calibrated on prose of another kind: the docstrings of Python's standard library), then runs 17 x 1,024 tokens of English
from Python's own `pydoc_data.topics` through each bundle's decoder: the first half of each sequence in chunks, as a
prompt, the second half one token at a time, as an answer; the second half is judged. Calibration otherwise uses later
parts of that text. KL is against the fp32 bundle's distribution. Ends with exit code 1 if GPTQ's KL is above half of
rounding's, or if the INT8 cache raises the perplexity by more than 0.5%.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import sys
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.decoder import Decoder
from pocketvlm.runtime.tokenizer import Tokenizer
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.export import export_checkpoint
from pocketvlm.toolchain.progress import RichProgress
from pocketvlm.toolchain.quantize.calibration_text import held_out_text
from pocketvlm.toolchain.recipe import DecoderWeights, ExportRecipe, KvCache, Thresholds
from pocketvlm.toolchain.stages import open_stages

ANYTHING = Thresholds(stage_cosine=-1.0, logits_kl=100.0, top1=0.0)
FLOAT_CACHE = KvCache(dtype="float32")
REFERENCE, ROUNDED, GPTQ, GPTQ_INT8 = "fp32", "round to nearest, float cache", "GPTQ, float cache", "GPTQ, INT8 cache"
GPTQ_OTHER = "GPTQ on other prose, float cache"


def other_prose() -> str:
    """Docstrings of the standard library's modules and of what is in them."""
    found = []
    for name in sorted(sys.stdlib_module_names):
        path = Path(sysconfig.get_path("stdlib")) / f"{name}.py"
        if name.startswith("_") or not path.is_file():
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        found += [text for text in map(ast.get_docstring, documented) if text]
    return "\n\n".join(found)


def recipes(tokens: int, other: Path) -> dict[str, ExportRecipe]:
    """The exports to compare, the reference first. `other` is a file with the other prose."""
    base = ExportRecipe(thresholds=ANYTHING, max_seq_len=2048)
    base = replace(base, calibration=replace(base.calibration, tokens=tokens))
    gptq = replace(base, decoder_weights=DecoderWeights("gptq"))
    return {
        REFERENCE: replace(base, precision="fp32"),
        ROUNDED: replace(base, decoder_weights=DecoderWeights("rtn"), kv_cache=FLOAT_CACHE),
        GPTQ: replace(gptq, kv_cache=FLOAT_CACHE),
        GPTQ_INT8: gptq,
        GPTQ_OTHER: replace(gptq, kv_cache=FLOAT_CACHE, calibration=replace(gptq.calibration, text=str(other))),
    }


def log_probabilities(decoder: Decoder, ids: list[int], prompt: int) -> NDArray[np.float32]:
    """Log-probabilities [len(ids) - prompt, V] of what follows each token from ids[prompt] on.

    The tokens before it are prefilled in chunks, the others fed one by one.
    """
    decoder.prefill(decoder.embed(ids[:prompt]))
    rows = []
    for token in ids[prompt:]:
        logits = decoder.step(token).astype(np.float32)
        logits = logits - logits.max()
        rows.append(logits - np.float32(math.log(float(np.exp(logits).sum()))))
    return np.stack(rows)


def export_all(checkpoint: Path, work: Path, tokens: int) -> tuple[dict[str, Path], dict[str, float]]:
    """Bundles, and the minutes that each export took, by name."""
    folders, minutes = {}, {}
    work.mkdir(parents=True, exist_ok=True)
    other = work / "other-prose.txt"
    other.write_text(other_prose(), encoding="utf-8")
    for number, (name, recipe) in enumerate(recipes(tokens, other).items()):
        folders[name] = work / f"bundle-{number}"
        start = time.perf_counter()
        with Checkpoint.open(str(checkpoint)) as opened, RichProgress() as progress:
            export_checkpoint(opened, folders[name], recipe, progress)
        minutes[name] = (time.perf_counter() - start) / 60
    return folders, minutes


def compare(
    folders: dict[str, Path], sequences: int, length: int, variants: Mapping[str, str] | None = None
) -> dict[str, dict[str, float]]:
    """Perplexity, KL and top-1 agreement of each bundle on the second halves of `sequences` texts of `length` tokens.

    Args:
        variants: which variant of a bundle, where it is not the first.
    """
    reference = Bundle.open(folders[REFERENCE])
    tokenizer = Tokenizer.of(reference)
    ids = tokenizer.encode(held_out_text(), special=False)
    if len(ids) < sequences * length:
        raise SystemExit(f"error: the text holds {len(ids)} tokens, {sequences * length} are needed; lower --sequences")
    losses: dict[str, list[float]] = {name: [] for name in folders}
    divergences: dict[str, list[float]] = {name: [] for name in folders}
    agreement: dict[str, list[float]] = {name: [] for name in folders}
    prompt = length // 2
    for number in range(sequences):
        part = ids[number * length : (number + 1) * length]
        wanted = part[prompt + 1 :]
        expected: NDArray[np.float32] | None = None
        for name, folder in folders.items():
            bundle = Bundle.open(folder, verify=False)
            wanted_variant = (variants or {}).get(name)
            variant = bundle.variant(wanted_variant) if wanted_variant else bundle.manifest.variants[0]
            with open_stages(variant, folder) as stages:
                got = log_probabilities(stages.decoder, part[:-1], prompt)
            expected = got if expected is None else expected
            losses[name].append(float(-got[np.arange(len(wanted)), wanted].mean()))
            divergences[name].append(float((np.exp(expected) * (expected - got)).sum(1).mean()))
            agreement[name].append(float((expected.argmax(1) == got.argmax(1)).mean()))
        print(f"{number + 1} of {sequences} texts", file=sys.stderr, flush=True)
    return {
        name: {
            "tokens": sequences * (length - prompt - 1),
            "perplexity": math.exp(float(np.mean(losses[name]))),
            "kl": float(np.mean(divergences[name])),
            "top1": float(np.mean(agreement[name])),
        }
        for name in folders
    }


def missed(rows: dict[str, dict[str, float]]) -> list[str]:
    """The goals that were not reached, in words."""
    found = []
    for name in (GPTQ, GPTQ_OTHER):
        share = rows[name]["kl"] / rows[ROUNDED]["kl"]
        if not share <= 0.5:
            found.append(f"{name}: the KL is {share:.2f} of rounding's, not half")
    rise = rows[GPTQ_INT8]["perplexity"] / rows[GPTQ]["perplexity"] - 1
    if not rise <= 0.005:
        found.append(f"the INT8 cache raises the perplexity by {rise:.2%}, not at most 0.5%")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/quality"))
    parser.add_argument("--sequences", type=int, default=17)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folders, minutes = export_all(arguments.checkpoint, arguments.work, arguments.calibration_tokens)
    rows = compare(folders, arguments.sequences, arguments.length)
    goals = missed(rows)
    if arguments.json:
        print(json.dumps({"rows": rows, "export_minutes": minutes, "missed": goals}))
        return 1 if goals else 0
    print(f"{rows[REFERENCE]['tokens']} tokens\n\n| bundle | perplexity | KL to fp32 | top-1 agreement | export |")
    print("|---|---|---|---|---|")
    for name, row in rows.items():
        change = f"{row['perplexity']:.3f} ({row['perplexity'] / rows[REFERENCE]['perplexity'] - 1:+.2%})"
        print(f"| {name} | {change} | {row['kl']:.4f} | {row['top1']:.1%} | {minutes[name]:.1f} min |")
    for goal in goals:
        print(f"missed: {goal}")
    return 1 if goals else 0


if __name__ == "__main__":
    sys.exit(main())
