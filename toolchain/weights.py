"""Canonical parameters of a checkpoint: renamed, checked against the spec, read one tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pocketvlm.errors import CheckpointError
from pocketvlm.toolchain.connectors import CONNECTORS
from pocketvlm.toolchain.decoders import DECODERS
from pocketvlm.toolchain.encoders import ENCODERS
from pocketvlm.toolchain.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from pocketvlm.toolchain.checkpoint import Checkpoint

Rename = Callable[[str], str | None]
_SHOWN = 5
_LAYER = re.compile(r"\.layers\.\d+\.")


def expected_parameters(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of every parameter that the spec needs."""
    shapes: dict[str, tuple[int, ...]] = {}
    shapes |= ENCODERS.load(spec.vision.kind).parameters(spec.vision)
    shapes |= CONNECTORS.load(spec.connector.kind).parameters(spec.connector)
    shapes |= DECODERS.load(spec.decoder.kind).parameters(spec.decoder)
    if spec.newline:
        shapes["newline"] = (spec.decoder.hidden_size,)
    return shapes


class CanonicalWeights:
    """Callable: canonical name -> float32 tensor, read from the checkpoint anew each time.

    Args:
        rename: checkpoint name -> canonical name, or None for a tensor that is known and not needed.

    Raises:
        CheckpointError: a tensor is missing, surplus, named twice or of the wrong shape (on construction);
            a tensor holds NaN or infinity (when it is read).
    """

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, rename: Rename) -> None:
        self._checkpoint = checkpoint
        self.shapes = expected_parameters(spec)
        self._sources = self._match(checkpoint.tensors, rename, spec)
        self._checked: set[str] = set()
        self._kept: dict[str, Tensor] = {}

    def _match(self, tensors: Mapping[str, object], rename: Rename, spec: ModelSpec) -> dict[str, str]:
        sources: dict[str, str] = {}
        surplus = []
        for name in tensors:
            canonical = rename(name)
            if canonical is None or _unused(spec, canonical):
                continue
            if canonical not in self.shapes:
                surplus.append(name)
            elif canonical in sources:
                raise CheckpointError(f"tensors {sources[canonical]!r} and {name!r} are the same parameter {canonical!r}")
            else:
                sources[canonical] = name
        missing = [name for name in self.shapes if name not in sources]
        if missing:
            shown = _some([_stored_name(name, sources) for name in missing[: _SHOWN + 1]])
            raise CheckpointError(
                f"the checkpoint lacks {len(missing)} tensor(s): {shown}",
                "download it again, or the config is of another model",
            )
        if surplus:
            raise CheckpointError(
                f"the checkpoint holds {len(surplus)} tensor(s) that its config does not explain: {_some(surplus)}",
                "the weights and config.json do not belong together",
            )
        for canonical, name in sources.items():
            found, wanted = tuple(self._checkpoint.tensors[name].shape), self.shapes[canonical]
            if found != wanted and not _same_but_for_ones(found, wanted):
                raise CheckpointError(
                    f"tensor {name!r} has shape {list(found)}, config.json asks for {list(wanted)}",
                    "the weights and config.json do not belong together",
                )
        return sources

    def __call__(self, name: str) -> Tensor:
        """Float32 tensor of the canonical `name`, in the shape that the spec asks for."""
        if name in self._kept:
            return self._kept[name]
        source = self._sources[name]
        tensor = self._checkpoint.tensor(source).float().reshape(self.shapes[name])
        if name not in self._checked:
            if not bool(tensor.isfinite().all()):
                raise CheckpointError(f"tensor {source!r} holds NaN or infinity", "the checkpoint is damaged")
            self._checked.add(name)
        return tensor

    def keep_in_memory(self, limit_bytes: int) -> None:
        """Hold all parameters in float32 when they fit into `limit_bytes`; otherwise go on streaming."""
        if 4 * self.parameter_count <= limit_bytes:
            self._kept = {name: self(name) for name in self.shapes}

    @property
    def parameter_count(self) -> int:
        """Number of parameters of the tensors that are exported."""
        total = 0
        for shape in self.shapes.values():
            count = 1
            for size in shape:
                count *= size
            total += count
        return total


_VISION_LAYER = re.compile(r"vision\.layers\.(\d+)\.")


def _unused(spec: ModelSpec, canonical: str) -> bool:
    """Parameters that the checkpoint rightly holds and this model never reads."""
    if canonical == "decoder.lm_head.weight":
        return spec.decoder.tie_embeddings
    if canonical.startswith("vision.final_norm."):
        return not spec.vision.final_norm
    layer = _VISION_LAYER.match(canonical)
    return layer is not None and max(spec.vision.feature_layers) <= int(layer[1]) < spec.vision.layers


def _same_but_for_ones(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return [size for size in found if size != 1] == [size for size in wanted if size != 1]


def _stored_name(missing: str, sources: Mapping[str, str]) -> str:
    """What the checkpoint would call a canonical parameter, judged by the same one of another layer; else `missing`."""
    layer = _LAYER.search(missing)
    if layer is not None:
        before, after = missing[: layer.start()], missing[layer.end() :]
        for canonical, source in sources.items():
            other = _LAYER.search(canonical)
            if other and other[0] in source and (canonical[: other.start()], canonical[other.end() :]) == (before, after):
                return source.replace(other[0], layer[0], 1)
    return missing


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
