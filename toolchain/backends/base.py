"""What a backend is given and what it must offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, cast

from torch import Tensor

from pocketvlm.runtime.manifest import VariantSpec
from pocketvlm.toolchain.backends.checks import Check
from pocketvlm.toolchain.kept import Kept
from pocketvlm.toolchain.model import EagerModel
from pocketvlm.toolchain.progress import Progress
from pocketvlm.toolchain.quality import PartQuality
from pocketvlm.toolchain.quantize.calibration import Conversation
from pocketvlm.toolchain.quantize.decoder import QuantizedDecoder
from pocketvlm.toolchain.quantize.kv_cache import KvScales
from pocketvlm.toolchain.quantize.scheme import WeightScheme
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.spec import ModelSpec
from pocketvlm.toolchain.weights import CanonicalWeights

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LowerJob:
    """Everything a backend needs to write one variant.

    Attributes:
        folder: existing, empty folder for the variant's files.
        prefix: path of that folder inside the bundle ("ort-cpu").
        folders: makes other folders of the bundle, by their prefix, for what several variants share.
        work: folder for what a later export may take up where this one was interrupted; made when needed.
        kept: results of an export that was interrupted.
        others: variants of this export's targets that were lowered before, by target.
        made: what `once` has made.
        capacity: positions of the cache.
        kv_scales: None for a float cache.
        decoder: the decoder quantized in a scheme by the recipe's method; worked out when it is first asked for.
        model, conversations, sequences: the eager model and the calibration data: images with questions, and text as
            embeddings float32 [batch, L, H].
    """

    spec: ModelSpec
    weights: CanonicalWeights
    recipe: ExportRecipe
    folder: Path
    prefix: str
    folders: Callable[[str], Path]
    work: Path
    kept: Kept
    others: Mapping[str, VariantSpec]
    made: dict[Callable[..., object], object]
    capacity: int
    kv_scales: KvScales | None
    decoder: Callable[[WeightScheme], QuantizedDecoder]
    model: EagerModel
    conversations: Sequence[Conversation]
    sequences: Sequence[Tensor]
    progress: Progress

    def once(self, make: Callable[[LowerJob], _T]) -> _T:
        """What `make` gives, which the targets of one export share: it is called for the first of them only."""
        if make not in self.made:
            self.made[make] = make(self)
        return cast(_T, self.made[make])


@dataclass(frozen=True, slots=True)
class Lowered:
    """What a backend has written.

    Attributes:
        variant: for the bundle. Its files may still be missing until `finish` has been called.
        checked: the same stages in a form that this machine can run, for the export's own measurements; its file names may be
            absolute. Targets may share it.
        proxy: a further variant that lets this machine's CPU compute what the target will, if the recipe wants one.
        finish: what takes long and is worth it only after `checked` has passed the recipe's thresholds: compiling, and what the
            target can show on this machine, on a real conversation, given the folder that file names are relative to. It
            raises GateError.
    """

    variant: VariantSpec
    checked: VariantSpec
    proxy: VariantSpec | None = None
    finish: Callable[[Path, Conversation], dict[str, PartQuality]] = lambda root, sample: {}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One value of a setting, with what the target's compiler estimates for it.

    Attributes:
        milliseconds: None where the compiler can do nothing with it.
        spilled_bytes: intermediate values of one layer that leave the chip's own memory, in the graph where they are most.
        failure: why it cannot be compiled.
    """

    value: str
    milliseconds: float | None
    spilled_bytes: int
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting of the recipe, its candidates and the one that was taken.

    Attributes:
        key: the recipe's key ("qnn.vision_batch").
        work: what the times are of.
    """

    key: str
    work: str
    winner: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Needs:
    """What lowering for one target takes, beside the rest of an export: memory while it runs, disk, and time.

    Attributes:
        shared_disk: further disk, by what is written: once for all targets that name the same.
        schemes: what the decoder's matrices are quantized to, once for all targets that ask for the same.
    """

    ram_bytes: int = 0
    disk_bytes: int = 0
    shared_disk: frozenset[tuple[str, int]] = frozenset()
    seconds: float = 0.0
    schemes: frozenset[WeightScheme] = frozenset()


class Backend(Protocol):
    """A compile target.

    Attributes:
        builds_on_others: whether it takes over files of other targets, which are lowered first then.
        default_context: capacity of the cache where the recipe says nothing and the model can do it.
    """

    builds_on_others: bool
    default_context: int

    def check(self, spec: ModelSpec, recipe: ExportRecipe) -> None:
        """Refuse what this target cannot do, before any work.

        Raises:
            SettingError: naming the setting and what to use instead.
        """

    def needs(self, spec: ModelSpec, recipe: ExportRecipe) -> Needs:
        """Estimated from the shapes alone."""

    def environment(self, phone_runtime: str | None) -> list[Check]:
        """What this machine, and a phone whose runtime has that version, need beside the packages.

        Raises:
            UsageError: the target has no runtime of its own on the phone.
        """

    def tune(
        self, spec: ModelSpec, weights: CanonicalWeights, recipe: ExportRecipe, scratch: Path, progress: Progress
    ) -> tuple[ExportRecipe, list[Choice]]:
        """The recipe with the settings that the target's compiler finds fastest. Begins a stage of `progress`.

        Raises:
            UsageError: the target has nothing to choose.
            GateError, EnvironmentFault: the compiler can do nothing with any candidate of a setting.
        """

    def lower(self, job: LowerJob) -> Lowered:
        """Write the variant's files and describe them."""
