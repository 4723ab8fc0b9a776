"""What INT4 weights and the INT8 cache cost, measured through exported bundles on text that calibration never saw.

    python benchmarks/quality.py build/smollm2-llava --work build/quality

Exports the checkpoint several times (fp32, round-to-nearest, GPTQ with a float cache, GPTQ with the INT8 cache), then
runs 8 x 1,024 tokens of English from Python's own `pydoc_data.topics` through each bundle's decoder, one token at a
time. Calibration uses later parts of that text. KL is against the fp32 bundle's distribution.
"""

from __future__ import annotations

import argparse
import json
import math
import time
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
from pocketvlm.toolchain.quantize.calibration import held_out_text
from pocketvlm.toolchain.recipe import DecoderWeights, ExportRecipe, KvCache, Thresholds
from pocketvlm.toolchain.stages import open_stages

ANYTHING = Thresholds(stage_cosine=-1.0, logits_kl=100.0, top1=0.0)
FLOAT_CACHE = KvCache(dtype="float32")


def recipes(tokens: int) -> dict[str, ExportRecipe]:
    """The exports to compare, the reference first."""
    base = ExportRecipe(thresholds=ANYTHING, max_seq_len=2048)
    base = replace(base, calibration=replace(base.calibration, tokens=tokens))
    gptq = replace(base, decoder_weights=DecoderWeights("gptq"))
    return {
        "fp32": replace(base, precision="fp32"),
        "round to nearest, float cache": replace(base, decoder_weights=DecoderWeights("rtn"), kv_cache=FLOAT_CACHE),
        "GPTQ, float cache": replace(gptq, kv_cache=FLOAT_CACHE),
        "GPTQ, INT8 cache": gptq,
    }


def log_probabilities(decoder: Decoder, ids: list[int]) -> NDArray[np.float32]:
    """Log-probabilities [len(ids), V] after each token, fed one by one."""
    decoder.reset()
    rows = []
    for token in ids:
        logits = decoder.step(token).astype(np.float32)
        logits = logits - logits.max()
        rows.append(logits - np.float32(math.log(float(np.exp(logits).sum()))))
    return np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/quality"))
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    minutes = {}
    folders = {}
    for number, (name, recipe) in enumerate(recipes(arguments.calibration_tokens).items()):
        folders[name] = arguments.work / f"bundle-{number}"
        start = time.perf_counter()
        with Checkpoint.open(str(arguments.checkpoint)) as checkpoint, RichProgress() as progress:
            export_checkpoint(checkpoint, folders[name], recipe, progress)
        minutes[name] = (time.perf_counter() - start) / 60
    reference = Bundle.open(folders["fp32"])
    tokenizer = Tokenizer.open(reference.path(reference.manifest.tokenizer.file))
    needed = arguments.sequences * arguments.length
    ids = tokenizer.encode(held_out_text(), special=False)
    if len(ids) < needed:
        raise SystemExit(f"error: the text holds {len(ids)} tokens, {needed} are needed; lower --sequences")
    losses: dict[str, list[float]] = {name: [] for name in folders}
    divergences: dict[str, list[float]] = {name: [] for name in folders}
    agreement: dict[str, list[float]] = {name: [] for name in folders}
    for start in range(0, needed, arguments.length):
        part = ids[start : start + arguments.length]
        expected: NDArray[np.float32] | None = None
        for name, folder in folders.items():
            variant = Bundle.open(folder, verify=False).manifest.variants[0]
            with open_stages(variant, folder) as stages:
                got = log_probabilities(stages.decoder, part[:-1])
            expected = got if expected is None else expected
            losses[name].append(float(-got[np.arange(len(part) - 1), part[1:]].mean()))
            divergences[name].append(float((np.exp(expected) * (expected - got)).sum(1).mean()))
            agreement[name].append(float((expected.argmax(1) == got.argmax(1)).mean()))
    rows = {}
    base = math.exp(float(np.mean(losses["fp32"])))
    for name in folders:
        perplexity = math.exp(float(np.mean(losses[name])))
        rows[name] = {
            "perplexity": perplexity,
            "against_fp32": perplexity / base - 1,
            "kl": float(np.mean(divergences[name])),
            "top1": float(np.mean(agreement[name])),
            "export_minutes": minutes[name],
        }
    if arguments.json:
        print(json.dumps({"tokens": needed, "rows": rows}))
        return
    print(f"{needed} tokens\n\n| bundle | perplexity | KL to fp32 | top-1 agreement | export |\n|---|---|---|---|---|")
    for name, row in rows.items():
        change = f"{row['perplexity']:.3f} ({100 * row['against_fp32']:+.2f}%)"
        print(f"| {name} | {change} | {row['kl']:.4f} | {100 * row['top1']:.1f}% | {row['export_minutes']:.1f} min |")


if __name__ == "__main__":
    main()
