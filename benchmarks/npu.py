"""Every NPU graph of a checkpoint on every SoC: whether it lands, how near its numbers are, what it weighs and takes.

    python benchmarks/npu.py demo/model -c export_configs/demo.qnn-SM8750.yaml --output build/npu
    python benchmarks/npu.py build/smollm2-llava -c build/rough.yaml --emulate none --soc SM8750

Exports once for all SoCs and prints a Markdown table, also written to OUTPUT.md.

- "Lands": nothing is left of the graphs but what was compiled. (An operator that does not land ends the export, with its
  name.)
- "Cosine": Qualcomm's emulation of the NPU against the same graph on ONNX Runtime's CPU, on real inputs; the worse of
  activations and cache.
- "Estimate": the compiler's simulated time of one run on an automotive chip of the nearest architecture, which is named; the
  same for all SoCs that it stands for. It ranks designs and is no phone's latency.
- MB and seconds are those of the binary; prefill and decode share one, and are emulated one by one.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import onnx

from pocketvlm.errors import PocketVLMError
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.toolchain.backends.qnn.simulated import Simulated, simulate_file
from pocketvlm.toolchain.backends.qnn.socs import SIMULATED, SOCS
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.export import export_checkpoint
from pocketvlm.toolchain.progress import RichProgress
from pocketvlm.toolchain.recipe import ExportRecipe, load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("-c", "--config", type=Path, help="recipe; its targets are replaced")
    parser.add_argument("--soc", action="append", choices=list(SOCS), help="only this one; may be repeated")
    parser.add_argument("--emulate", choices=["none", "small", "all"], default="all")
    parser.add_argument("--output", type=Path, default=Path("build/npu"), help="bundle to write, and beside it the table")
    options = parser.parse_args()
    socs = options.soc or list(SOCS)
    try:
        recipe = load_recipe(options.config) if options.config else ExportRecipe()
        qnn = replace(recipe.qnn, weight_sharing=True, proxy=True, emulate=options.emulate)
        recipe = replace(recipe, targets=tuple(f"qnn:{soc}" for soc in socs), qnn=qnn)
        with RichProgress() as progress, Checkpoint.open(options.checkpoint) as checkpoint:
            export_checkpoint(checkpoint, options.output, recipe, progress)
        table = rows_of(options.output, socs, int(qnn.memory_gb * 1e9))
    except PocketVLMError as error:
        sys.exit(f"error: {error}")
    heads = ["binary", "graphs", "SoC", "lands", "cosine", "MB", "compile s", "compiler GB", "estimate"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in table)]
    options.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def rows_of(path: Path, socs: list[str], memory: int) -> list[list[str]]:
    """One row for each binary and SoC."""
    bundle = Bundle.open(path)
    report = json.loads(bundle.path("report.json").read_text())["variants"]
    proxy = next(variant for variant in bundle.manifest.variants if variant.name == "qnn-cpu")
    compiled = {variant.target: variant.stages for variant in bundle.manifest.variants}
    known: dict[tuple[str, int], Simulated] = {}
    rows = []
    for part in report[f"qnn-{socs[0]}"]["parts"]:
        graphs = graphs_of(part, list(proxy.stages))
        for soc in socs:
            found = report[f"qnn-{soc}"]["parts"][part]
            times = []
            for graph in graphs:
                key = (graph, SOCS[soc].estimated_as)
                if key not in known:
                    file = bundle.directory / proxy.stages[graph].file
                    known[key] = simulate_file(file, SOCS[soc], path.with_name("npu-simulated"), memory)
                spilled = known[key].spilled_bytes
                more = f" ({spilled / 1e6:.0f} MB spilled)" if spilled else ""
                times.append(f"{known[key].microseconds / 1000:.2f} ms{more}")
            told = [f"{cosine:.6f}{' (first layer)' if ',' in what else ''}" for what, cosine in found["cosines"].items()]
            cosine = ", ".join(told) or "not emulated"
            size, seconds = f"{found['bytes'] / 1e6:.1f}", f"{found['compile_seconds']:.1f}"
            gigabytes = f"{found['compiler_bytes'] / 1e9:.2f}"
            files = [bundle.directory / compiled[f"qnn:{soc}"][graph].file for graph in graphs]
            lands = "yes" if all(map(landed, files)) else "no"
            chip = SIMULATED[SOCS[soc].estimated_as]
            rows.append([part, ", ".join(graphs), soc, lands, cosine, size, seconds, gigabytes, f"{', '.join(times)} ({chip})"])
    return rows


def landed(path: Path) -> bool:
    """Whether the graph consists of compiled parts alone."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return bool(nodes) and all(node.op_type == "EPContext" for node in nodes)


def graphs_of(part: str, stages: list[str]) -> list[str]:
    """The graphs in a binary: prefill and decode share one."""
    if part in stages:
        return [part]
    kind, _, number = part.partition(".")
    assert kind == "decoder"
    return [stage for stage in stages if stage in {f"{name}{'.' if number else ''}{number}" for name in ("prefill", "decode")}]


if __name__ == "__main__":
    main()
