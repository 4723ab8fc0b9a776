"""`pocketvlm bench`"""

from __future__ import annotations

from typing import Literal

from pocketvlm.errors import UsageError
from pocketvlm.toolchain.commands.output import print_json, print_line, print_table
from pocketvlm.toolchain.devices import HOST, ability
from pocketvlm.toolchain.devices.report import EMULATED, MEASURED, BenchJob, BenchReport
from pocketvlm.toolchain.progress import RichProgress

Format = Literal["json", "markdown", "table"]


def bench(device: str, job: BenchJob, form: Format) -> None:
    """Measure on a device, and print median and standard deviation of every figure.

    Raises:
        UsageError: options for another device, and this computer is the device.
        PocketVLMError: see the `bench` of the device's module.
    """
    measure, address = ability(device, "bench")
    elsewhere = {"--timeout": job.timeout_s, "--runner": job.runner, "--onnxruntime-android": job.onnxruntime_android}
    for option, value in elsewhere.items():
        if device == HOST and value is not None:
            raise UsageError(f"{option} is for another device", "give it with --device adb, or leave it out")
    with RichProgress() as progress:
        report: BenchReport = measure(address, job, progress)
    _print(form, report)


def _print(form: Format, report: BenchReport) -> None:
    if form == "json":
        print_json(report.to_json())
        return
    settings, results = report.settings, report.results
    names = [name for name in MEASURED if any(name in figures for figures in results.values())]
    rows = [[name, *(_cell(figures.get(name)) for figures in results.values())] for name in names]
    place = report.backend_actual if report.device is None else f"{report.backend_actual} on {report.device['name']}"
    threads = f"{settings.threads} threads" if settings.threads else "the engine's threads"
    count = "one run" if settings.repetitions == 1 else f"median ± sd of {settings.repetitions} runs"
    title = f"{report.model}, {place}, {threads}: {count}"
    if report.emulated:
        title += f", {EMULATED}"
    closing = [*report.remarks, report.note]
    if form == "table":
        print_table(title, ["", *results], rows)
        for line in closing:
            print_line(line)
        return
    print_line(f"{title}\n\n| | {' | '.join(results)} |\n|---|{'---:|' * len(results)}")
    for row in rows:
        print_line(f"| {' | '.join(row)} |")
    for line in closing:
        print_line(f"\n{line}")


def _cell(figure: dict[str, float | None] | None) -> str:
    if figure is None:
        return ""
    # What was measured once, or is always the same, has no spread.
    return f"{figure['median']:.4g}" + (f" ± {figure['sd']:.2g}" if figure["sd"] else "")
