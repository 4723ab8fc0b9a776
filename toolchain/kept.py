"""What an interrupted export has worked out, on disk beside its output, for the next one to take up.

Each result lies under the hash of everything that it depends on, so that nothing stale is taken. A file is put in place when
it is whole; safetensors and JSON alone, so that reading it runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

# Raised when what is kept, or how it is worked out, changes.
_FORMAT = 1
# Inside an export's folder of work: the folder of results, and what lies with every part that is compiled.
RESULTS, COMPILED = "kept", "compiled.json"


class Kept:
    """Results by name.

    Args:
        folder: made when the first result is kept; None keeps nothing.
        depends_on: what all results depend on.
        taken: told of each result that need not be worked out again.
    """

    def __init__(
        self, folder: Path | None, depends_on: Iterable[object], taken: Callable[[str], None] = lambda what: None
    ) -> None:
        self._folder = folder
        self._seed = repr((_FORMAT, *depends_on))
        self._taken = taken

    def arrays(self, name: str, depends_on: Iterable[object], told: str | None = None) -> dict[str, NDArray[Any]] | None:
        """Arrays that were kept, or None.

        Args:
            told: what `taken` hears of them; their name unless given.
        """
        path = self._path(name, depends_on, ".safetensors")
        if path is None:
            return None
        try:
            found: dict[str, NDArray[Any]] = load_file(path)
        except (OSError, safetensors.SafetensorError):
            return None
        self._taken(told or name)
        return found

    def keep_arrays(self, name: str, depends_on: Iterable[object], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays, if there is room for them."""
        path = self._path(name, depends_on, ".safetensors")
        if path is not None:
            _put(path, lambda partial: save_file(dict(arrays), partial))

    def pairs(self, name: str, depends_on: Iterable[object], told: str | None = None) -> dict[str, tuple[float, float]] | None:
        """Pairs of numbers that were kept, or None; `told` as for arrays."""
        path = self._path(name, depends_on, ".json")
        if path is None:
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            pairs = {key: (float(low), float(high)) for key, (low, high) in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        self._taken(told or name)
        return pairs

    def keep_pairs(self, name: str, depends_on: Iterable[object], pairs: Mapping[str, tuple[float, float]]) -> None:
        """Keep pairs of numbers, in every bit, if there is room for them."""
        path = self._path(name, depends_on, ".json")
        if path is not None:
            _put(path, lambda partial: partial.write_text(json.dumps(pairs), encoding="utf-8"))

    def _path(self, name: str, depends_on: Iterable[object], suffix: str) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(repr((self._seed, *depends_on)).encode()).hexdigest()
        return self._folder / f"{name}-{digest[:32]}{suffix}"


def what_is_kept(work: Path) -> str:
    """What a folder of work holds for the next export, in words; empty if nothing is finished."""
    # Beside the finished ones may lie one whose export was killed while it put it in place.
    parts = sum(not path.parent.name.endswith(".partial") for path in work.glob(f"*/*/{COMPILED}"))
    names = {path.name.partition("-")[0] for path in (work / RESULTS).glob("*-*") if path.suffix != ".partial"}
    told = [f"{parts} compiled part{'' if parts == 1 else 's'}"] if parts else []
    told += ["the quantized decoder"] if names & {"gptq", "distilled"} else []
    told += ["ranges"] if "ranges" in names else []
    return ", ".join(told)


def digest_of(arrays: Iterable[NDArray[Any]]) -> str:
    """Hash of arrays, in their order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.shape, array.dtype)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _put(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, safetensors.SafetensorError):
        # The export itself does not need it.
        with contextlib.suppress(OSError):
            partial.unlink()
