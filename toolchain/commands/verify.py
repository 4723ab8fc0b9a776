"""`pocketvlm verify`"""

from __future__ import annotations

from pathlib import Path

from pocketvlm.toolchain.commands.output import print_json, print_line, print_table
from pocketvlm.toolchain.progress import RichProgress
from pocketvlm.toolchain.verify import verify_bundle


def verify(bundle: Path, as_json: bool) -> None:
    """Check a bundle; print the cosine of every stage that runs here with what it gave at export, and which do not run.

    Raises:
        BundleError: it is damaged.
        GateError: a stage gives other numbers.
        EnvironmentFault: no stage runs here.
    """
    with RichProgress() as progress:
        found = verify_bundle(bundle, progress)
    if as_json:
        print_json(found)
        return
    print_line(f"{found['files']} files are those that the manifest lists")
    for variant in dict.fromkeys([*found["variants"], *found["not_run"]]):
        cosines, missing = found["variants"].get(variant, {}), found["not_run"].get(variant, {})
        if cosines:
            rows = [(stage, f"{cosine:.6f}") for stage, cosine in cosines.items()]
            print_table(f"{variant}: cosine with the numbers at export", ("stage", "cosine"), rows)
        print_line(f"{variant}: {len(cosines)} of {len(cosines) + len(missing)} stages compared{_told(missing)}")


def _told(missing: dict[str, str]) -> str:
    """Which stages were not, by their reasons."""
    by_reason: dict[str, list[str]] = {}
    for stage, reason in missing.items():
        by_reason.setdefault(reason, []).append(stage)
    return "".join(f"; not: {', '.join(stages)} ({reason})" for reason, stages in by_reason.items())
