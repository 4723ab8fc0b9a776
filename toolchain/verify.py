"""A bundle against its own record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.errors import BundleError, EnvironmentFault, GateError, PocketVLMError
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.devices import check_runs_here
from pocketvlm.runtime.manifest import VariantSpec
from pocketvlm.runtime.placement import check_stages
from pocketvlm.runtime.strict_json import decode
from pocketvlm.runtime.tokenizer import Tokenizer
from pocketvlm.runtime.vision_contract import check_contract, check_sizes
from pocketvlm.toolchain import probe
from pocketvlm.toolchain.progress import Progress, SilentProgress

if TYPE_CHECKING:
    pass

from pocketvlm.toolchain.quality import REPORT_NAME, QualityReport

_PROBE_COSINE = 0.99


def verify_bundle(path: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Hashes, schema and stage numerics of a bundle, against what its exporter recorded.

        {"files": their number, "variants": {variant: {stage: cosine}}, "not_run": {variant: {stage: reason}}}

    Stages that cannot run here are not compared: those for other devices, and on an emulation those whose binaries share
    weights. A variant is in "variants" if at least one of its stages was compared, and in "not_run" if at least one was not.

    Raises:
        BundleError: damaged, or without a report.
        GateError: a stage gives other numbers here than at export.
        EnvironmentFault: not one stage can run here.
    """
    progress = SilentProgress() if progress is None else progress
    with closing(Bundle.open(path)) as bundle, bundle.named():
        variants = bundle.manifest.variants
        for variant in variants:
            check_sizes(bundle.manifest, variant)
        report = read_report(bundle)
        Tokenizer.of(bundle)
        found: dict[str, Any] = {"files": len(bundle.manifest.files), "variants": {}, "not_run": {}}
        every: list[PocketVLMError] = []
        for variant in variants:
            check_stages(variant)
            check_contract(variant)
            recorded = report.get("variants", {}).get(variant.name, {}).get("probes")
            if not isinstance(recorded, dict):
                raise BundleError(f"{REPORT_NAME} has no probes for variant {variant.name!r}", "export the checkpoint again")
            faults = _not_run(variant, recorded)
            if faults:
                told = {stage: "; ".join(filter(None, (fault.message, fault.hint))) for stage, fault in faults.items()}
                found["not_run"][variant.name] = told
                every += faults.values()
            wanted = [stage for stage in probe.stages_of(variant) if stage not in faults]
            if wanted:
                found["variants"][variant.name] = _compared_with_export(variant, bundle.directory, recorded, wanted, progress)
    if not found["variants"]:
        reasons = dict.fromkeys(fault.message for fault in every)
        raise EnvironmentFault(
            f"the {found['files']} files are those that the manifest lists, but no stage can be compared, since none runs here:"
            f" {'; '.join(reasons)}",
            ", or ".join(dict.fromkeys(fault.hint for fault in every if fault.hint)),
        )
    return found


def _not_run(variant: VariantSpec, recorded: Mapping[str, Any]) -> dict[str, PocketVLMError]:
    """Stages that cannot be compared here, and why."""
    found: dict[str, PocketVLMError] = {}
    for stage in probe.stages_of(variant):
        try:
            check_runs_here(variant, probe.graphs_of(variant, stage))
        except (BundleError, EnvironmentFault) as error:
            found[stage] = error
    if "lm_head" in probe.stages_of(variant) and "lm_head" not in recorded:
        # Exports have not always recorded it; it is part of the decoder's numbers in any case.
        again = BundleError(f"{REPORT_NAME} holds no numbers of it", "export the checkpoint again")
        found.setdefault("lm_head", again)
    return found


def _compared_with_export(
    variant: VariantSpec, root: Path, recorded: Mapping[str, Any], wanted: Sequence[str], progress: Progress
) -> dict[str, float]:
    """Cosines of stages with what the export recorded.

    Raises:
        GateError: one is below the bound.
    """
    numbers = {stage: number for number, stage in enumerate(wanted, 1)}

    def begin(stage: str) -> None:
        progress.stage(f"{variant.name}: {stage} ({numbers[stage]} of {len(wanted)})", 1)

    cosines = probe.compare(recorded, probe.record(variant, root, wanted, begin))
    worst = min(cosines, key=lambda name: cosines[name])
    if not cosines[worst] >= _PROBE_COSINE:
        raise GateError(
            f"variant {variant.name!r}: stage {worst} gives other numbers here than at export"
            f" (cosine {cosines[worst]:.4f} < {_PROBE_COSINE})",
            "this machine's kernels differ; report it with the output of `pocketvlm doctor`",
        )
    return cosines


def read_report(bundle: Bundle) -> dict[str, Any]:
    """`report.json` of an opened bundle.

    Raises:
        BundleError: it is missing, not JSON, or not of the form that `measure` gives.
    """
    try:
        report = json.loads(bundle.path(REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BundleError(f"{REPORT_NAME} cannot be read", "export the checkpoint again") from None
    if not isinstance(report, dict):
        raise BundleError(f"{REPORT_NAME} is not an object", "export the checkpoint again")
    decode(dict[str, QualityReport], report.get("variants"), f"{REPORT_NAME}.variants", BundleError, ignore_unknown=True)
    return report
