"""What a bundle costs on this machine: prefill, decode, image encoding, time to the first token, memory.

    python benchmarks/host.py build/demo-bundle
    python benchmarks/host.py build/bench/int8-cache --reference-bundle build/bench/fp32 \\
        --float-cache-bundle build/bench/float-cache

Every case runs in processes of its own, in turns with those that it is compared with. docs/benchmarks.md says what the
figures mean.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import (
    Case,
    MeasurementError,
    Sample,
    Summary,
    cell,
    conditions,
    figures_table,
    machine,
    others_share,
    paired_ratios,
    prose,
    summarise_samples,
    take_turns,
    to_json,
    versions,
)

from pocketvlm.errors import PocketVLMError
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.prompt import PromptBuilder
from pocketvlm.runtime.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "demo" / "screens" / "screen-1.png"
QUESTION = "What is written here? Read everything."
EXCLUDED = (
    "not in the figures of a process: loading (load_ms is by itself), one whole run of the same kind before the measured one",
    "one whole turn before the measured ones, for the page cache",
)
_PADDING_WORDS = 20


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure, and how often."""

    bundle: str
    prompt_tokens: int = 1536
    new_tokens: int = 64
    threads: int = 2
    repetitions: int = 5
    picture: str = str(PICTURE)
    reference_bundle: str | None = None
    float_cache_bundle: str | None = None


def measure(settings: Settings) -> dict[str, Any]:
    """Run all cases and report.

    Raises:
        MeasurementError: a case failed.
        PocketVLMError: a bundle cannot be opened.
    """
    bundle = Bundle.open(settings.bundle)
    groups = {
        "language model": _language_cases(settings, bundle),
        "image encoding": _vision_cases(settings, bundle),
        "whole answers": _answer_cases(settings, bundle),
    }
    samples = {name: take_turns(cases, settings.repetitions) for name, cases in groups.items()}
    return {
        "model": bundle.manifest.model.name,
        "variant": bundle.variant().name,
        "machine": machine(),
        "versions": versions("pocketvlm", "onnxruntime", "numpy"),
        "settings": _shown(settings),
        "excluded": list(EXCLUDED),
        "others_share": others_share(list(samples.values())),
        "figures": {group: {name: summarise_samples(runs) for name, runs in cases.items()} for group, cases in samples.items()},
        "ratios": _ratios(samples),
    }


def _shown(settings: Settings) -> dict[str, Any]:
    """What was given, files by their names alone."""
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    return {name: Path(value).name if isinstance(value, str) else value for name, value in given.items()}


def _language_cases(settings: Settings, bundle: Bundle) -> list[Case]:
    """The decoder's stages alone, prompt as token ids: prefill of N, then steps at that depth."""
    tokenizer = Tokenizer.of(bundle)
    tokens = tokenizer.encode(prose()[: 12 * settings.prompt_tokens], special=False)[: settings.prompt_tokens]
    request = {"tokens": tokens, "new_tokens": settings.new_tokens, "threads": settings.threads}
    command = (sys.executable, str(HERE / "peers" / "run_pocketvlm.py"))
    bundles = {"this bundle": settings.bundle, "float cache": settings.float_cache_bundle}
    return [Case(name, command, {**request, "model": path}) for name, path in bundles.items() if path is not None]


def _vision_cases(settings: Settings, bundle: Bundle) -> list[Case]:
    """The picture with and without batches and overlap, and the reference bundle's tiles one at a time."""
    batch = bundle.variant().vision_batch
    cases = {f"batches of {batch}, overlapped": (settings.bundle, batch, True)}
    if not isinstance(bundle.variant().stages["vision_encoder"].inputs[0].shape[0], int):
        cases["one tile at a time"] = (settings.bundle, 1, False)
    if settings.reference_bundle is not None:
        cases["reference, one tile at a time"] = (settings.reference_bundle, 1, False)
    return [
        _worker(name, settings, kind="vision", bundle=path, batch=tiles, overlap=overlap, picture=settings.picture)
        for name, (path, tiles, overlap) in cases.items()
    ]


def _answer_cases(settings: Settings, bundle: Bundle) -> list[Case]:
    """Whole sessions: text, streaming and sampling included."""
    count, text = _counter(bundle), prose()
    texts = {
        "text": fit(text, settings.prompt_tokens, count),
        "warm_up": fit(text[len(text) // 2 :], settings.prompt_tokens, count),
    }
    about = {"picture": settings.picture, "question": QUESTION, "new_tokens": settings.new_tokens}
    return [
        _worker("text", settings, kind="text", new_tokens=settings.new_tokens, **texts),
        _worker("image cold", settings, kind="image cold", release="keep", **about),
        _worker("image encoded", settings, kind="image encoded", release="keep", **about),
        _worker("image encoded, vision released", settings, kind="image encoded", release="after_encode", **about),
    ]


def _worker(name: str, settings: Settings, **request: Any) -> Case:
    command = (sys.executable, str(HERE / "host_worker.py"))
    return Case(name, command, {"bundle": settings.bundle, "threads": settings.threads, **request})


def _counter(bundle: Bundle) -> Callable[[str], int]:
    manifest = bundle.manifest
    tokenizer = Tokenizer.of(bundle)
    builder = PromptBuilder(manifest.prompt, tokenizer, manifest.tokenizer.add_special_tokens)

    def count(text: str) -> int:
        prompt = builder.encode([{"role": "user", "content": text}])
        return sum(len(part) for part in prompt.parts if isinstance(part, tuple))

    return count


def fit(text: str, wanted: int, count: Callable[[str], int]) -> str:
    """The longest beginning of `text`, in whole words, whose prompt has at most `wanted` tokens; filled up with " a".

    Args:
        count: tokens of the whole prompt with such a text.

    Raises:
        MeasurementError: even one word is too many.
    """
    words = text.split(" ")
    low, high = 1, min(len(words), wanted)
    if count(words[0]) > wanted:
        raise MeasurementError(f"the shortest prompt has {count(words[0])} tokens, {wanted} are wanted")
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(" ".join(words[:middle])) <= wanted else (low, middle - 1)
    best = " ".join(words[:low])
    for _ in range(_PADDING_WORDS):
        if count(best + " a") > wanted:
            break
        best += " a"
    return best


def _ratios(samples: Mapping[str, Mapping[str, Sequence[Sample]]]) -> dict[str, Summary]:
    """Paired comparisons, turn by turn, of what was measured."""
    language, vision = samples["language model"], list(samples["image encoding"].items())
    found = {}
    if "float cache" in language:
        name = "prefill tok/s, this bundle / float cache"
        found[name] = paired_ratios(language["this bundle"], language["float cache"], "prefill_tok_s")
    best_name, best = vision[0]
    for name, runs in vision[1:]:
        found[f"image encoding time, {name} / {best_name}"] = paired_ratios(runs, best, "vision_ms")
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """The report as text."""
    lines = [f"## {report['model']}, {report['variant']}", "", conditions(report), ""]
    for group, figures in report["figures"].items():
        lines += [f"### {group.capitalize()}", "", figures_table(figures), ""]
    if report["ratios"]:
        lines += ["### Of each turn", "", *(f"- {name}: {cell(ratio)}" for name, ratio in report["ratios"].items()), ""]
    return "\n".join(lines)


def main() -> None:
    default = Settings("")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--prompt-tokens", type=int, default=default.prompt_tokens)
    parser.add_argument("--new-tokens", type=int, default=default.new_tokens)
    parser.add_argument("--threads", type=int, default=default.threads)
    parser.add_argument("--repetitions", type=int, default=default.repetitions)
    parser.add_argument("--picture", default=default.picture)
    parser.add_argument("--reference-bundle", help="an fp32 export of the same checkpoint, for the image encoding")
    parser.add_argument("--float-cache-bundle", help="an export with kv_cache.dtype float32, for the prefill")
    parser.add_argument("--json", action="store_true")
    arguments = vars(parser.parse_args())
    as_json = arguments.pop("json")
    try:
        report = measure(Settings(**arguments))
    except (MeasurementError, PocketVLMError) as error:
        raise SystemExit(f"error: {error}") from None
    print(json.dumps(to_json(report)) if as_json else markdown(report))


if __name__ == "__main__":
    main()
