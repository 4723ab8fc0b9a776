"""`pocketvlm verify`"""

from __future__ import annotations

from pathlib import Path

from pocketvlm.toolchain.commands.output import print_json, print_line, print_table
from pocketvlm.toolchain.verify import verify_bundle


def verify(bundle: Path, as_json: bool) -> None:
    """Check a bundle and print the cosine of every stage with what it gave at export.

    Raises:
        BundleError: it is damaged.
        GateError: a stage gives other numbers.
    """
    found = verify_bundle(bundle)
    if as_json:
        print_json(found)
        return
    print_line(f"{found['files']} files are those that the manifest lists")
    for variant, reason in found["not_run"].items():
        print_line(f"{variant}: not run here: {reason}")
    for variant, cosines in found["variants"].items():
        print_table(
            f"{variant}: cosine with the numbers at export", ("stage", "cosine"), [(k, f"{v:.6f}") for k, v in cosines.items()]
        )
