"""The demo: export the shipped checkpoint, ask the bundle about the shipped screenshots, show what it cost.

    make demo

Everything goes through the public faces: `pocketvlm export` and `pocketvlm.runtime.VlmSession`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from pocketvlm.runtime import VlmSession
from pocketvlm.runtime.metrics import Metrics
from pocketvlm.runtime.trace import Trace
from schedule import draw_schedule

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build"
BUNDLE = BUILD / "demo-bundle"
SCREENS = HERE / "screens"
COLUMNS = ("", "tiles", "image tokens", "vision ms", "cold", "encoded", "next", "prefill", "decode")
CAPTION = (
    "cold, encoded, next: ms to the first text when the image comes with the question, has been encoded before, has just "
    "been asked about; prefill, decode: tokens/s"
)


def main() -> int:
    console = Console()
    console.rule("1. checkpoint -> phone bundle")
    recipe = HERE.parent / "export_configs" / "demo.ort-cpu.yaml"
    command = [
        str(Path(sys.executable).parent / "pocketvlm"),
        "export",
        str(HERE / "model"),
        "-o",
        str(BUNDLE),
        "-c",
        str(recipe),
    ]
    console.print("$ " + " ".join(command), soft_wrap=True)
    finished = subprocess.run(command, check=False)
    if finished.returncode:
        return finished.returncode
    console.rule("2. questions about phone screenshots")
    trace = Trace()
    rows: dict[str, list[str]] = {}
    right = asked = 0
    questions = json.loads((SCREENS / "questions.json").read_text(encoding="utf-8"))
    with VlmSession.open(BUNDLE, trace=trace) as session:
        for name, pairs in questions.items():
            console.print(f"\n[bold]{name}[/bold]")
            measured: list[Metrics] = []
            for question, expected in pairs:
                answer, metrics = ask(console, session, SCREENS / name, question)
                measured.append(metrics)
                asked += 1
                right += answer == expected
                if answer != expected:
                    console.print(f"  [red]expected[/red] {expected}")
            cold, following = measured[0], measured[1:]
            rows[name] = [
                str(cold.tiles),
                str(cold.image_tokens),
                f"{cold.vision_ms:.0f}",
                f"{cold.ttft_ms:.0f}",
                # Its image tokens are still in the KV cache.
                f"{statistics.median(item.ttft_ms for item in following):.0f}",
                f"{cold.prefill_tok_s:.0f}",
                f"{statistics.median(item.decode_tok_s for item in measured):.0f}",
            ]
        # Once more in turn: each image is encoded by now, but another one's tokens are in the KV cache.
        for name, pairs in questions.items():
            _, last = ask(Console(quiet=True), session, SCREENS / name, pairs[0][0])
            rows[name].insert(4, f"{last.ttft_ms:.0f}")
    console.rule("3. what it cost on this machine")
    table = Table(*COLUMNS, caption=CAPTION, box=box.SIMPLE, pad_edge=False, padding=(0, 0, 0, 1))
    for name, row in rows.items():
        table.add_row(Path(name).stem, *row)
    console.print(table)
    size = sum(path.stat().st_size for path in BUNDLE.rglob("*") if path.is_file())
    peak = "unknown" if last.peak_rss_mb is None else f"{last.peak_rss_mb:.0f} MB"
    console.print(f"{right} of {asked} answers as expected (they are the recipe's task: the export would have failed without)")
    console.print(f"bundle {size / 1e6:.1f} MB; peak memory of this process {peak}")
    trace.save(BUILD / "demo-trace.json")
    draw_schedule(trace.to_json(), BUILD / "demo-schedule.png")
    console.print(f"schedule: {BUILD / 'demo-schedule.png'}", soft_wrap=True)
    console.print(f"ask it yourself: {Path(sys.executable).parent / 'pocketvlm'} chat {BUNDLE}", soft_wrap=True)
    console.print(f"Perfetto trace (open it at ui.perfetto.dev): {BUILD / 'demo-trace.json'}", soft_wrap=True)
    return 0 if right == asked else 1


def ask(console: Console, session: VlmSession, picture: Path, question: str) -> tuple[str, Metrics]:
    """Stream one answer to the console."""
    content = [{"type": "image", "image": str(picture)}, {"type": "text", "text": question}]
    console.print(f"  [cyan]{question}[/cyan] ", end="")
    stream = session.chat([{"role": "user", "content": content}], max_new_tokens=200)
    for piece in stream:
        console.print(piece.replace("\n", "\n    "), end="", highlight=False, markup=False)
    console.print()
    return stream.text, stream.metrics


if __name__ == "__main__":
    sys.exit(main())
