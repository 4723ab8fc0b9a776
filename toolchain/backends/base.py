"""What a backend is given and what it must offer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pocketvlm.runtime.manifest import VariantSpec
from pocketvlm.toolchain.progress import Progress
from pocketvlm.toolchain.quantize.block import BlockWeights
from pocketvlm.toolchain.quantize.kv_cache import KvScales
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.spec import ModelSpec
from pocketvlm.toolchain.weights import CanonicalWeights


@dataclass(frozen=True, slots=True)
class LowerJob:
    """Everything a backend needs to write one variant.

    Attributes:
        folder: existing, empty folder for the variant's files.
        prefix: path of that folder inside the bundle ("ort-cpu").
        capacity: positions of the cache.
        kv_scales: None for a float cache.
        decoder_blocks: matrices that a calibrated method has quantized already, by canonical prefix.
    """

    spec: ModelSpec
    weights: CanonicalWeights
    recipe: ExportRecipe
    folder: Path
    prefix: str
    capacity: int
    kv_scales: KvScales | None
    decoder_blocks: Mapping[str, BlockWeights]
    progress: Progress


class Backend(Protocol):
    """A compile target."""

    def check(self, spec: ModelSpec, recipe: ExportRecipe) -> None:
        """Refuse what this target cannot do, before any work.

        Raises:
            UsageError: naming the setting and what to use instead.
        """

    def lower(self, job: LowerJob) -> VariantSpec:
        """Write the variant's files and describe them."""
