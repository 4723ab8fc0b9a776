"""One tiny random BlueLM-V, its exports, and the command line, which is called in this process wherever that is possible."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from PIL import Image

from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.cli import main
from pocketvlm.toolchain.export import export_checkpoint
from pocketvlm.toolchain.progress import SilentProgress
from pocketvlm.toolchain.recipe import ExportRecipe, load_recipe
from tests.golden.tiny_bluelm_v import TinyBlueLMV
from tests.program import Ended

ROOT = Path(__file__).resolve().parents[2]
GRIDS = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)]
# A random model meets these; no export here is judged by its quality.
RECIPE = {"calibration": {"tokens": 64}, "thresholds": {"stage_cosine": -1, "logits_kl": 100, "top1": 0}}
# Random weights gain nothing from GPTQ; the demo's bundle and the command line's tests go through it.
ROUNDED = {"decoder_weights": {"method": "rtn"}}
BUNDLES: dict[str, dict[str, Any]] = {
    "paper": ROUNDED,
    "INT8 prefill": {"prefill_weights": "int8", **ROUNDED},
    "fastest on ARM": {"ort_cpu": {"arm_kernels": "fastest"}, **ROUNDED},
    "fp32": {"precision": "fp32"},
    "fp32, chunks of 7": {"precision": "fp32", "chunk_size": 7},
    "fp32, fixed batch": {"precision": "fp32", "fixed_vision_batch": True},
}
_THREADS = torch.get_num_threads()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Threads cost tiny models more than they give."""
    torch.set_num_threads(_THREADS if item.get_closest_marker("slow") else 1)


class Result(Ended):
    """A command that has ended."""

    def failed(self, code: int, pattern: str) -> None:
        """It failed as documented: one line that names what is wrong, and nothing else that reads like an error."""
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert (self.code, len(errors)) == (code, 1), self.err
        assert self.err.endswith(errors[0] + "\n")
        assert "Traceback" not in self.err
        assert re.search(pattern, errors[0]), errors[0]
        # It says what to do, or what would have been right.
        assert re.search(r"\)$|expected|not between|is none of|must be|finite", errors[0]), errors[0]


Call = Callable[..., Result]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command line."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(item) for item in arguments])
        return Result(code, *capsys.readouterr())

    return run


def contents(directory: Path) -> dict[str, str]:
    """Hash of every file below a directory, by its relative path; links by their target."""
    return {
        path.relative_to(directory).as_posix(): (
            str(path.readlink()) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="session")
def model() -> TinyBlueLMV:
    """The reference; with this seed no near tie stands where tests compare tokens (they assert it)."""
    return TinyBlueLMV(seed=8)


@pytest.fixture(scope="session")
def pristine(model: TinyBlueLMV, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint, which no test changes."""
    return model.save(tmp_path_factory.mktemp("checkpoint") / "tiny", GRIDS)


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(pristine, tmp_path / "checkpoint" / "tiny")


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(json.dumps(RECIPE))
    return path


@pytest.fixture(scope="session")
def exported(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a name in BUNDLES, exported when it is first asked for. No test changes it."""
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(name: str) -> Path:
        place = folder / name.replace(", ", "-").replace(" ", "-")
        if not place.exists():
            file = folder / "recipe.yaml"
            file.write_text(json.dumps({**RECIPE, **BUNDLES[name]}))
            recipe: ExportRecipe = load_recipe(file)
            with Checkpoint.open(str(pristine)) as opened:
                export_checkpoint(opened, place, recipe, SilentProgress())
        return place

    return bundle


@pytest.fixture
def bundle(exported: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the paper bundle, to be damaged."""
    return shutil.copytree(exported("paper"), tmp_path / "bundles" / "tiny")


@pytest.fixture(scope="session")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """451 x 300 pixels: six tiles and a thumbnail."""
    path = tmp_path_factory.mktemp("photographs") / "chelsea.png"
    Image.fromarray(skimage.data.chelsea()).save(path)
    return path


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint, exported with its own recipe and held to that recipe's thresholds."""
    bundle = tmp_path_factory.mktemp("demo") / "bundle"
    recipe = load_recipe(ROOT / "export_configs" / "demo.ort-cpu.yaml")
    with Checkpoint.open(str(ROOT / "demo" / "model")) as checkpoint:
        export_checkpoint(checkpoint, bundle, recipe, SilentProgress())
    return bundle


@pytest.fixture(scope="session")
def npu_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo for the NPU: rounded, without emulation, and with the variant that the CPU can run."""
    folder = tmp_path_factory.mktemp("npu")
    text = (ROOT / "export_configs" / "demo.qnn-SM8750.yaml").read_text()
    text = text.replace("../demo", str(ROOT / "demo")).replace("method: gptq", "method: rtn")
    text = text.replace("emulate: all", "emulate: none\n  proxy: true").replace("task: ", "# ").replace("\n  task: 0.95", "")
    (folder / "quick.yaml").write_text(text)
    assert main(["export", str(ROOT / "demo" / "model"), "-c", str(folder / "quick.yaml"), "-o", str(folder / "bundle")]) == 0
    return folder / "bundle"
