"""The Kotlin runtime beside the Python one: the same bundle, the same questions, processes that take turns.

    python benchmarks/kotlin.py build/demo-bundle
    python benchmarks/kotlin.py build/bench/int8-cache --prompt-tokens 1536 --new-tokens 64 --threads 2

Needs what `mvn package` builds of runtime/kotlin. The processes are `pocketvlm bench` and `dev.pocketvlm.runner.Main`, which
ask the same questions and warm up alike; a JVM compiles its code while it runs, and one warm-up run does not end that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import (
    Case,
    MeasurementError,
    Sample,
    cell,
    conditions,
    machine,
    others_share,
    paired_ratios,
    share_of_others,
    summarise_samples,
    table,
    take_turns,
    versions,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PICTURE = ROOT / "demo" / "screens" / "screen-1.png"
DESKTOP = ROOT / "runtime" / "kotlin" / "desktop" / "target"
_TIMEOUT_SECONDS = 1800
# Figure of the table -> case and figure of the bench, and whether more is better.
FIGURES = {
    "load_ms": ("image cold", "load_ms", False),
    "vision_ms": ("image cold", "vision_ms", False),
    "ttft_ms, image cold": ("image cold", "ttft_ms", False),
    "ttft_ms, image encoded": ("image encoded", "ttft_ms", False),
    "prefill_tok_s": ("image encoded", "prefill_tok_s", True),
    "decode_tok_s": ("image encoded", "decode_tok_s", True),
    "overhead_ms_per_token": ("image encoded", "overhead_ms_per_token", False),
    "peak_rss_mb": ("image encoded", "peak_rss_mb", False),
}


def commands(arguments: argparse.Namespace, output: Path) -> dict[str, tuple[str, ...]]:
    """Program and arguments of both runtimes."""
    settings = ["--image", str(arguments.picture), "--repetitions", str(arguments.runs)]
    for name in ("prompt_tokens", "new_tokens", "threads", "target"):
        value = getattr(arguments, name)
        if value is not None:
            settings += [f"--{name.replace('_', '-')}", str(value)]
    jars = list(DESKTOP.glob("pocketvlm-desktop-*.jar"))
    if not jars:
        raise MeasurementError(f"{DESKTOP}: nothing is built: (cd runtime/kotlin && mvn package)")
    java = ("java", "-cp", f"{jars[0]}:{DESKTOP / 'lib'}/*", "dev.pocketvlm.runner.Main", "--bundle", arguments.bundle)
    return {
        "python": (sys.executable, "-m", "pocketvlm", "bench", arguments.bundle, "--json", *settings),
        "kotlin": (*java, *settings, "--output", str(output)),
    }


def measure(case: Case) -> Sample:
    """Run one process and take the figures out of what it writes."""
    output = Path(case.request["output"])
    written: list[str] = []

    def run() -> None:
        done = subprocess.run(case.command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
        if done.returncode:
            raise MeasurementError(f"{case.name}: exit status {done.returncode}\n{done.stdout[-500:]}{done.stderr[-1000:]}")
        written.append(done.stdout)

    share = share_of_others(run)
    report: dict[str, Any] = json.loads(output.read_text(encoding="utf-8") if case.name == "kotlin" else written[0])
    figures = {name: float(report["results"][asked][figure]["median"]) for name, (asked, figure, _) in FIGURES.items()}
    return Sample(figures, {"backend_actual": report["backend_actual"]}, share)


def main() -> int:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--target")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of a process; its figures are their medians")
    parser.add_argument("--repetitions", type=int, default=5, help="turns")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "figures.json"
            cases = [Case(name, command, {"output": str(output)}) for name, command in commands(arguments, output).items()]
            samples = take_turns(cases, arguments.repetitions, run=measure)
    except MeasurementError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(comparison(samples))
    report = {
        "machine": machine(),
        "versions": versions("pocketvlm", "onnxruntime", "numpy", "pillow", "tokenizers"),
        "settings": {key: value for key, value in vars(arguments).items() if value is not None},
        "excluded": ["a warm-up run per case, and one whole turn before the measured ones"],
        "others_share": others_share([samples]),
    }
    print("\n" + conditions(report))
    return 0


def comparison(samples: dict[str, list[Sample]]) -> str:
    """Both runtimes, and the median of the turns' ratios: above 1 where Kotlin is better."""
    both = {name: summarise_samples(found) for name, found in samples.items()}
    rows = []
    for figure, (_, _, more_is_better) in FIGURES.items():
        one, other = ("kotlin", "python") if more_is_better else ("python", "kotlin")
        ratio = paired_ratios(samples[one], samples[other], figure)
        rows.append([figure, cell(both["python"][figure]), cell(both["kotlin"][figure]), f"{ratio.median:.2f}"])
    return table(["median ± sd (min)", "Python", "Kotlin", "Kotlin better by"], rows)


if __name__ == "__main__":
    sys.exit(main())
