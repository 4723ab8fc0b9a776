"""Real sizes, too slow for every run: what quantization costs a real language model, and a 3B model from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.slow
def test_gptq_and_the_int8_cache_cost_a_real_model_little(tmp_path: Path) -> None:
    """SmolLM2-135M on 8,000 tokens that calibration never saw: GPTQ's KL at most half of rounding's, the cache 0.5%."""
    checkpoint = tmp_path / "smollm2-llava"
    subprocess.run([sys.executable, str(BENCHMARKS / "checkpoints" / "smollm2_llava.py"), str(checkpoint)], check=True)
    command = [sys.executable, str(BENCHMARKS / "quality.py"), str(checkpoint), "--work", str(tmp_path / "work"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    found = json.loads(done.stdout)
    assert (found["missed"], done.returncode) == ([], 0)
    rows = found["rows"]
    assert min(row["tokens"] for row in rows.values()) >= 8000
    assert rows["GPTQ, float cache"]["kl"] <= 0.5 * rows["round to nearest, float cache"]["kl"]
    assert rows["GPTQ on other prose, float cache"]["kl"] <= 0.5 * rows["round to nearest, float cache"]["kl"]
    assert rows["GPTQ, INT8 cache"]["perplexity"] <= 1.005 * rows["GPTQ, float cache"]["perplexity"]


@pytest.mark.slow
def test_int4_methods_reach_their_goals(tmp_path: Path) -> None:
    """SmolLM2-135M on 8 x 1,024 tokens that calibration never saw, in the numbers of every target."""
    checkpoint = tmp_path / "smollm2-llava"
    subprocess.run([sys.executable, str(BENCHMARKS / "checkpoints" / "smollm2_llava.py"), str(checkpoint)], check=True)
    command = [sys.executable, str(BENCHMARKS / "int4_methods.py"), str(checkpoint), "--work", str(tmp_path), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    found = json.loads(done.stdout)
    assert (found["missed"], done.returncode) == ([], 0)
    rows = {(row["scheme"], row["method"]): row for row in found["rows"]}
    rounded, tuned = "round to nearest", "GPTQ, then distillation"
    assert rows["block 32", tuned]["perplexity_change"] <= 0.08
    assert rows["per channel", tuned]["kl"] <= 0.4 * rows["per channel", rounded]["kl"]
    for scheme in ("block 32", "per channel", "LPBQ, block 32"):
        assert rows[scheme, tuned]["kl"] < rows[scheme, "GPTQ"]["kl"] < rows[scheme, rounded]["kl"]
        assert len({row["bits_per_weight"] for row in found["rows"] if row["scheme"] == scheme}) == 1


@pytest.mark.slow
def test_a_3b_model_of_full_size_exports_and_answers(tmp_path: Path) -> None:
    """BlueLM-V-3B's sizes with random weights; needs 12 GB of disk and 20 GB of memory."""
    command = [sys.executable, str(BENCHMARKS / "full_size.py"), "--build", str(tmp_path), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout)
    found = json.loads(done.stdout)
    assert found["plan"] == {"grid": [2, 4], "tiles": 8, "thumbnail": True, "image_tokens": 9 * 196}
    # Never two copies of the model in float32, nor one: three billion parameters are 12 GB in float32.
    assert found["export_peak_gb"] < 9
    assert found["bundle_gb"] < 2.2
    assert found["answer_peak_gb"] < 3.3
    assert found["rss_after_release_mb"] < found["rss_before_release_mb"]
