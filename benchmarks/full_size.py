"""BlueLM-V-3B at full size: does it export here, how large is the bundle, how much memory does an answer take?

    python benchmarks/full_size.py                     about 12 GB of disk under build/, half an hour on two cores

Random weights: the answer means nothing, its cost does. The paper (arXiv 2411.10640, section 4) reports 2.2 GB of
memory on a phone's NPU for its 3B model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
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


def run(*command: str) -> tuple[float, float, str]:
    """Run a command; seconds, peak resident memory in GB, and what it printed."""
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return time.perf_counter() - start, peak / 1e6, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    build = parser.parse_args().build
    checkpoint, bundle, picture = build / "bluelm-v-3b", build / "bluelm-v-3b-bundle", build / "screen-768x1536.png"
    if not (checkpoint / "model.safetensors").exists():
        run(sys.executable, str(HERE / "checkpoints" / "bluelm_v_3b.py"), str(checkpoint))
    recipe = ROOT / "export_configs" / "bluelm-v-3b.ort-cpu.yaml"
    program = str(Path(sys.executable).parent / "pocketvlm")
    seconds, peak, _ = run(program, "export", str(checkpoint), "-c", str(recipe), "-o", str(bundle))
    rng = np.random.default_rng(0)
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (48, 24, 3), dtype=np.uint8)).resize((768, 1536)).save(picture)
    _, _, printed = run(sys.executable, "-c", ASK, str(bundle), str(picture))
    answer = json.loads(printed)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    print(f"export: {seconds / 60:.1f} min, peak memory {peak:.1f} GB; bundle {size / 1e9:.2f} GB")
    print(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
