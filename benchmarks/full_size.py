"""BlueLM-V-3B at full size: does it export here, how large is the bundle, how much memory does an answer take?

    python benchmarks/full_size.py                     about 12 GB of disk under build/, half an hour on two cores

Random weights: the answer means nothing, its cost does. The paper (arXiv 2411.10640, section 4) reports 2.2 GB of
memory on a phone's NPU for its 3B model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAPER_GB = 2.2
ASK = """
import json, sys
from pocketvlm.runtime import VlmSession
with VlmSession.open(sys.argv[1], release="after_encode", verify=False, max_length=2048) as session:
    content = [{"type": "image", "image": sys.argv[2]}, {"type": "text", "text": "What is this?"}]
    answer = session.chat([{"role": "user", "content": content}], max_new_tokens=16)
    "".join(answer)
    m = answer.metrics
    print(json.dumps({"plan": answer.tile_plans[0].to_json(), "vision_ms": m.vision_ms, "ttft_ms": m.ttft_ms,
        "prefill_tok_s": m.prefill_tok_s, "decode_tok_s": m.decode_tok_s, "peak_rss_mb": m.peak_rss_mb,
        "rss_before_release_mb": m.rss_before_release_mb, "rss_after_release_mb": m.rss_after_release_mb}))
"""


@dataclass(frozen=True)
class Finished:
    """A command that succeeded: its time, its own peak resident memory in GB, and what it printed."""

    seconds: float
    peak_gb: float
    printed: str


def run(*command: str) -> Finished:
    """Run a command to its end.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        # wait4 tells the usage of this child alone.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Finished(time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9, printed)


def measure(build: Path) -> dict[str, Any]:
    """Make the checkpoint (unless it is there), export it, answer once about a 768x1536 picture."""
    checkpoint, bundle, picture = build / "bluelm-v-3b", build / "bluelm-v-3b-bundle", build / "screen-768x1536.png"
    if not (checkpoint / "model.safetensors").exists():
        run(sys.executable, str(HERE / "checkpoints" / "bluelm_v_3b.py"), str(checkpoint))
    recipe = ROOT / "export_configs" / "bluelm-v-3b.ort-cpu.yaml"
    program = str(Path(sys.executable).parent / "pocketvlm")
    exported = run(program, "export", str(checkpoint), "-c", str(recipe), "-o", str(bundle))
    rng = np.random.default_rng(0)
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (48, 24, 3), dtype=np.uint8)).resize((768, 1536)).save(picture)
    answered = run(sys.executable, "-c", ASK, str(bundle), str(picture))
    return {
        "export_minutes": exported.seconds / 60,
        "export_peak_gb": exported.peak_gb,
        "checkpoint_gb": (checkpoint / "model.safetensors").stat().st_size / 1e9,
        "bundle_gb": sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) / 1e9,
        "answer_peak_gb": answered.peak_gb,
        "paper_gb": PAPER_GB,
        **json.loads(answered.printed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.build)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    grid, tokens = "x".join(map(str, found["plan"]["grid"])), found["plan"]["image_tokens"]
    print(f"export        {found['export_minutes']:.1f} min, peak memory {found['export_peak_gb']:.2f} GB")
    print(f"bundle        {found['bundle_gb']:.2f} GB, from {found['checkpoint_gb']:.2f} GB of weights")
    print(f"answer        peak memory {found['answer_peak_gb']:.2f} GB; the paper's phone: {PAPER_GB} GB")
    print(f"              {found['rss_before_release_mb'] / 1024:.2f} GiB before the vision stages are released, "
          f"{found['rss_after_release_mb'] / 1024:.2f} GiB after")  # fmt: skip
    print(f"768x1536      grid {grid}, {tokens} image tokens, vision {found['vision_ms'] / 1000:.1f} s, "
          f"first text after {found['ttft_ms'] / 1000:.1f} s, prefill {found['prefill_tok_s']:.0f} tok/s, "
          f"decode {found['decode_tok_s']:.1f} tok/s")  # fmt: skip


if __name__ == "__main__":
    main()
