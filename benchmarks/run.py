"""`make bench`: everything that is measured on a PC, with nothing to prepare.

    python benchmarks/run.py [--repetitions 5] [--threads 2] [--without-peers]

Makes what is missing under build/: a LLaVA checkpoint around the real SmolLM2-135M, four exports of it, the peers'
environments. Then runs host.py and peers.py and compares with the goals. Writes build/bench/results.json and results.md.
Close other programs first: the report says how much of the processors they took.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import host
import peers
from measure import MeasurementError, Summary, cell, is_quiet, table, to_json

from pocketvlm.errors import PocketVLMError

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build"
CHECKPOINT = BUILD / "smollm2-llava"
BENCH = BUILD / "bench"
# Eight tiles and a thumbnail, BlueLM-V-3B's phone screen. Speed does not depend on how weights were rounded, so the
# quickest method serves and quality is not judged here (benchmarks/quality.py does).
COMMON: dict[str, Any] = {
    "max_seq_len": 2048,
    "decoder_weights": {"method": "rtn"},
    "tiling": {"policy": "relaxed_aspect", "grids": [[2, 4]], "thumbnail": "always"},
    "thresholds": {"stage_cosine": -1.0, "logits_kl": 100.0, "top1": 0.0},
    "calibration": {"tokens": 2048, "prompts": [host.QUESTION]},
}
RECIPES: dict[str, dict[str, Any]] = {
    "int8-cache": COMMON,
    "int8-prefill": {**COMMON, "prefill_weights": "int8"},
    "float-cache": {**COMMON, "kv_cache": {"dtype": "float32"}},
    "fp32": {**COMMON, "precision": "fp32"},
}


OURS = {peers.OURS: BENCH / "int8-cache", f"{peers.OURS}, INT8 prefill": BENCH / "int8-prefill"}


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should reach.

    Attributes:
        at_least: whether `limit` is the least allowed value or the largest.
    """

    name: str
    measured: Summary
    limit: float
    at_least: bool

    @property
    def reached(self) -> bool:
        """By the median."""
        return self.measured.median >= self.limit if self.at_least else self.measured.median <= self.limit


def goals(host_report: Mapping[str, Any], peer_report: Mapping[str, Any] | None) -> list[Goal]:
    """The goals that these reports can answer."""
    found = []
    for pair, ratios in (peer_report or {"ratios": {}})["ratios"].items():
        found += [
            Goal(f"prefill tok/s, {pair}", ratios["prefill_tok_s"], 1.8, True),
            Goal(f"decode tok/s, {pair}", ratios["decode_tok_s"], 1.4, True),
            Goal(f"peak RSS, {pair}", ratios["peak_rss_mb"], 1.0, False),
        ]
    for name, ratio in host_report["ratios"].items():
        if name.startswith("prefill"):
            found.append(Goal(name, ratio, 0.85, True))
        elif "reference" in name:
            found.append(Goal(name, ratio, 2.0, True))
    overhead = host_report["figures"]["whole answers"]["text"]["overhead_ms_per_token"]
    return [*found, Goal("Python overhead per decoded token, ms", overhead, 0.3, False)]


def export() -> None:
    """Make the checkpoint and the bundles that are missing.

    Raises:
        MeasurementError: one cannot be made.
    """
    if not (CHECKPOINT / "preprocessor_config.json").exists():
        peers.run_with_smollm2(HERE / "checkpoints" / "smollm2_llava.py", str(CHECKPOINT))
    BENCH.mkdir(parents=True, exist_ok=True)
    for name, recipe in RECIPES.items():
        config = BENCH / f"{name}.yaml"
        # What the exporter's code changes is exported anew, too.
        text = f"# toolchain {_code_digest()}\n{json.dumps(recipe, indent=1)}\n"
        if (BENCH / name / "manifest.json").exists() and config.exists() and config.read_text(encoding="utf-8") == text:
            continue
        # JSON is YAML.
        config.write_text(text, encoding="utf-8")
        program = [sys.executable, "-m", "pocketvlm.toolchain.cli", "export"]
        finished = subprocess.run([*program, str(CHECKPOINT), "-o", str(BENCH / name), "-c", str(config)], check=False)
        if finished.returncode:
            config.unlink()
            raise MeasurementError(f"exporting {name}: exit status {finished.returncode}")


def _code_digest() -> str:
    """SHA-256 over the exporter's sources."""
    digest = hashlib.sha256()
    for path in sorted((HERE.parent / "toolchain").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def markdown(reached: Sequence[Goal], quiet: bool, parts: Sequence[str]) -> str:
    """The whole report as text; a machine that was not quiet has reached nothing."""
    rows = []
    for goal in reached:
        verdict = "not quiet" if not quiet else "yes" if goal.reached else "**no**"
        rows.append([goal.name, f"{'>=' if goal.at_least else '<='} {goal.limit:g}", cell(goal.measured), verdict])
    return "\n\n".join(["# Benchmarks", table(["goal", "wanted", "median ± sd (min)", "reached"], rows), *parts]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=1536)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--without-peers", action="store_true", help="nothing is installed from PyPI for them")
    arguments = parser.parse_args()
    settings = host.Settings(
        bundle=str(BENCH / "int8-cache"),
        prompt_tokens=arguments.prompt_tokens,
        new_tokens=arguments.new_tokens,
        threads=arguments.threads,
        repetitions=arguments.repetitions,
        reference_bundle=str(BENCH / "fp32"),
        float_cache_bundle=str(BENCH / "float-cache"),
    )
    peer_report = None
    try:
        export()
        if not arguments.without_peers:
            peer_report = peers.compare(
                OURS, settings.prompt_tokens, settings.new_tokens, settings.threads, settings.repetitions
            )
        host_report = host.measure(settings)
    except (MeasurementError, PocketVLMError) as error:
        raise SystemExit(f"error: {error}") from None
    found = goals(host_report, peer_report)
    reports = [host_report] if peer_report is None else [peer_report, host_report]
    quiet = all(is_quiet(report) for report in reports)
    text = markdown(found, quiet, [*([peers.markdown(peer_report)] if peer_report else []), host.markdown(host_report)])
    results = {
        "quiet": quiet,
        "goals": [{**asdict(goal), "reached": quiet and goal.reached} for goal in found],
        "peers": to_json(peer_report),
        "host": to_json(host_report),
    }
    (BENCH / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (BENCH / "results.md").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
