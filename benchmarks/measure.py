"""Measuring in fresh processes that take turns, and the arithmetic and tables around it. Standard library only.

A *case* is a program that reads a request (JSON) from its standard input, warms up, measures once and prints one JSON
object, {"figures": {name: number}, "details": {name: anything}}, as its last line. Cases that are compared run in turns,
A B C A B C ..., each time in a new process, so that a machine whose speed drifts treats them alike, and so that the peak
memory of one is not that of another.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import pydoc_data.topics
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BUSY_SHARE = 0.05
_TIMEOUT_SECONDS = 1800
_LAST_LINES = 15


class MeasurementError(Exception):
    """A case failed; the message says which and shows the end of what it wrote."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure.

    Attributes:
        command: program and arguments.
        request: what it reads, as JSON.
    """

    name: str
    command: tuple[str, ...]
    request: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process of a case printed.

    Attributes:
        others_share: part of the machine's processor time, 0 to 1, that anything else took meanwhile (other processes,
            the hypervisor); None where the system does not tell.
    """

    figures: dict[str, float]
    details: dict[str, Any]
    others_share: float | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """Of repeated values: median, sample standard deviation (0 of a single value), smallest, largest, how many."""

    median: float
    sd: float
    minimum: float
    maximum: float
    count: int


def summarise(values: Sequence[float]) -> Summary:
    """The `Summary` of one value or more."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Summary(statistics.median(values), deviation, min(values), max(values), len(values))


def summarise_samples(samples: Sequence[Sample]) -> dict[str, Summary]:
    """Every figure that all samples have, in the order of the first."""
    names = [name for name in samples[0].figures if all(name in sample.figures for sample in samples)]
    return {name: summarise([sample.figures[name] for sample in samples]) for name in names}


def paired_ratios(numerators: Sequence[Sample], denominators: Sequence[Sample], figure: str) -> Summary:
    """numerator / denominator of a figure, turn by turn: what both runs of a turn have in common cancels out."""
    pairs = zip(numerators, denominators, strict=True)
    return summarise([above.figures[figure] / below.figures[figure] for above, below in pairs])


def take_turns(
    cases: Sequence[Case],
    repetitions: int,
    warm_up_turns: int = 1,
    run: Callable[[Case], Sample] | None = None,
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, list[Sample]]:
    """Run every case once per turn; returns the samples of each by name, without those of the warm-up turns.

    The warm-up turns bring files into the page cache; what a process needs to warm up itself is the case's own business.

    Raises:
        MeasurementError: a case failed.
    """
    run = run or run_fresh
    samples: dict[str, list[Sample]] = {case.name: [] for case in cases}
    for turn in range(-warm_up_turns, repetitions):
        for case in cases:
            tell(f"{'warm-up' if turn < 0 else f'turn {turn + 1} of {repetitions}'}: {case.name}")
            sample = run(case)
            if turn >= 0:
                samples[case.name].append(sample)
    return samples


def run_fresh(case: Case) -> Sample:
    """Run a case in a new process.

    Raises:
        MeasurementError: it failed, took half an hour, or printed no result.
    """
    before = _processor_seconds()
    try:
        finished = subprocess.run(
            case.command,
            input=json.dumps(case.request),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"{case.name}: no result after {_TIMEOUT_SECONDS} s") from None
    except OSError as error:
        raise MeasurementError(f"{case.name}: {case.command[0]} cannot be started: {error.strerror}") from None
    if finished.returncode:
        end = "\n".join(finished.stderr.splitlines()[-_LAST_LINES:])
        raise MeasurementError(f"{case.name}: exit status {finished.returncode}\n{end}")
    return _parse(case.name, finished.stdout, _others_share(before, _processor_seconds()))


def share_of_others(work: Callable[[], None]) -> float | None:
    """Do `work`, which waits for processes that it starts; returns what part of the machine anything else took meanwhile."""
    before = _processor_seconds()
    work()
    return _others_share(before, _processor_seconds())


def _parse(name: str, output: str, others_share: float | None) -> Sample:
    lines = output.strip().splitlines()
    try:
        result = json.loads(lines[-1])
        figures = {key: float(value) for key, value in result["figures"].items()}
        return Sample(figures, dict(result["details"]), others_share)
    except (IndexError, ValueError, KeyError, TypeError, AttributeError):
        raise MeasurementError(f"{name}: the last line is no result: {lines[-1:]}") from None


@dataclass(frozen=True, slots=True)
class _ProcessorSeconds:
    """Since the start of the machine: all, those not idle (the hypervisor's included), those of our ended children."""

    total: float
    busy: float
    children: float


def _processor_seconds() -> _ProcessorSeconds | None:
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    seconds = [int(field) / ticks for field in fields]
    used = os.times()
    return _ProcessorSeconds(sum(seconds), sum(seconds) - seconds[3] - seconds[4], used.children_user + used.children_system)


def _others_share(before: _ProcessorSeconds | None, after: _ProcessorSeconds | None) -> float | None:
    if before is None or after is None or after.total <= before.total:
        return None
    others = (after.busy - before.busy) - (after.children - before.children)
    return max(0.0, others / (after.total - before.total))


def others_share(groups: Sequence[Mapping[str, Sequence[Sample]]]) -> Summary | None:
    """The share of the machine that others took, over all samples that know it; None if none does."""
    known = [
        sample.others_share
        for group in groups
        for samples in group.values()
        for sample in samples
        if sample.others_share is not None
    ]
    return summarise(known) if known else None


def is_quiet(report: Mapping[str, Any]) -> bool:
    """Whether other work took so little of the machine that a report's figures mean something; True where not known."""
    share = report["others_share"]
    return share is None or share.median <= BUSY_SHARE


def prose() -> str:
    """English prose that every Python carries: the topics of `help()`, 500,000 characters."""
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in sorted(topics))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor_name(),
        "cores": usable,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str]:
    """Installed versions in this environment; packages that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def to_json(value: Any) -> Any:
    """Summaries, inside dictionaries of any depth, as plain values."""
    if isinstance(value, dict):
        return {name: to_json(item) for name, item in value.items()}
    return asdict(value) if isinstance(value, Summary) else value


def cell(summary: Summary | None) -> str:
    """median ± standard deviation, and the smallest value: "512 ± 3.1 (508)"; empty for None."""
    if summary is None:
        return ""
    if summary.minimum == summary.maximum:
        return number(summary.median)
    deviation = f"{summary.sd:.0f}" if summary.sd >= 10 else f"{summary.sd:.2g}"
    return f"{number(summary.median)} ± {deviation} ({number(summary.minimum)})"


def number(value: float) -> str:
    """Four significant digits, never in powers of ten: 0.1234, 12.34, 1234, 123456."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def figures_table(summaries: Mapping[str, Mapping[str, Summary]]) -> str:
    """One row per figure, one column per case."""
    names = list(dict.fromkeys(name for figures in summaries.values() for name in figures))
    rows = [[name, *(cell(figures.get(name)) for figures in summaries.values())] for name in names]
    return table(["median ± sd (min)", *summaries], rows)


def conditions(report: Mapping[str, Any]) -> str:
    """Machine, versions, settings and what is excluded, as Markdown; with a warning when the machine was not quiet."""
    host = report["machine"]
    lines = [
        f"- machine: {host['processor']}, {host['cores']} cores, {host['memory_gb']} GB; {host['system']}",
        f"- versions: Python {host['python']}, " + ", ".join(f"{name} {text}" for name, text in report["versions"].items()),
        "- settings: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report["settings"].items()),
        *(f"- {line}" for line in report["excluded"]),
    ]
    share = report["others_share"]
    if share is not None:
        lines.append(f"- other work took {share.median:.1%} of the processors in the median, at most {share.maximum:.1%}")
    if not is_quiet(report):
        lines.append("- **not quiet**: these figures are not comparable")
    return "\n".join(lines)
