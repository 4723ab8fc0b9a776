"""The same checkpoint and recipe give the same bundle, byte for byte: in another process, from and to other folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pocketvlm.runtime.manifest_reader import parse_manifest
from pocketvlm.toolchain.cli import main

from .tiny_bluelm_v import TinyBlueLMV

# Method, and the text that it is calibrated on.
METHODS = {"gptq": None, "rtn": None, "distill": "generated"}
# Numbers must not depend on Python's hash seed; how many threads torch sums with may change their last digits.
EXPORT_ALL = """
import json, sys, torch
from pocketvlm.toolchain.cli import main
torch.set_num_threads(int(sys.argv[1]))
sys.exit(max(main(["export", *arguments]) for arguments in json.loads(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a copy of it elsewhere, and every recipe exported in a process of its own."""

    folder = tmp_path_factory.mktemp("determinism")
    TinyBlueLMV().save(folder / "first/tiny", [(1, 1), (2, 1), (2, 2)])
    shutil.copytree(folder / "first/tiny", folder / "second/tiny")
    runs = []
    for method, text in METHODS.items():
        recipe = folder / f"{method}.yaml"
        thresholds = {"stage_cosine": -1, "logits_kl": 50, "top1": 0}
        content = {
            "decoder_weights": {"method": method},
            "calibration": {"tokens": 512, "text": text},
            "thresholds": thresholds,
        }
        recipe.write_text(json.dumps(content))
        runs.append([str(folder / "second/tiny"), "-o", str(folder / f"second/{method}"), "-c", str(recipe)])
    program = [sys.executable, "-c", EXPORT_ALL, str(torch.get_num_threads()), json.dumps(runs)]
    done = subprocess.run(program, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_exporting_twice_gives_the_same_manifest(place: Path, method: str) -> None:
    assert (
        main(["export", str(place / "first/tiny"), "-o", str(place / f"first/{method}"), "-c", f"{place}/{method}.yaml"]) == 0
    )
    text = (place / f"first/{method}/manifest.json").read_text(encoding="utf-8")
    assert text == (place / f"second/{method}/manifest.json").read_text(encoding="utf-8")
    listed = {item.path for item in parse_manifest(text).files}
    assert listed >= {"tokenizer.json", "report.json", "newline.f32", "ort-cpu/decoder.onnx", "ort-cpu/language.data"}


def test_the_methods_differ(place: Path) -> None:
    """Otherwise the test above would compare one algorithm with itself."""
    data = [place / f"second/{method}/ort-cpu/language.data" for method in METHODS]
    assert data[0].read_bytes() != data[1].read_bytes()
