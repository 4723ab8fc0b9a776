"""What the runtime expects of a program that runs graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class BoundRun(Protocol):
    """A graph whose inputs and outputs are fixed arrays: each call reads the former and writes the latter."""

    def run(self) -> float:
        """Run the graph once; returns the seconds inside the engine, without what this program does around it.

        Raises:
            Cancelled: `EngineSession.cancel` was called meanwhile; the outputs are then undefined.
            EnvironmentFault: the engine failed.
        """
        ...


class EngineSession(Protocol):
    """One opened graph. `cancel` may be called from any thread; `run` and `bind` from one at a time."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph on `inputs` and return all outputs by name.

        Raises:
            Cancelled: `cancel` was called meanwhile.
            EnvironmentFault: the engine failed.
        """
        ...

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> BoundRun:
        """Tie the graph to C-contiguous arrays that the caller fills and reads between runs.

        The same array may stand in both mappings: the graph then writes it in place. Outputs that are not named are
        discarded.
        """
        ...

    def cancel(self) -> None:
        """Stop the runs in progress, if any; they raise `Cancelled`. Later runs are not affected."""

    def close(self) -> None:
        """Free the graph and its weights; what was bound cannot run any more. Closing twice is allowed."""


class Engine(Protocol):
    """Opens graphs."""

    def open(self, path: Path, options: Mapping[str, str], threads: int | None) -> EngineSession:
        """Load the graph in `path` (files that it refers to lie beside it).

        Args:
            options: engine options of the variant, from the manifest.
            threads: threads of one operator; None leaves the choice to the engine.

        Raises:
            BundleError: the file or an option is not one that this engine knows.
            EnvironmentFault: this machine cannot run it.
        """
        ...


def require_contiguous(arrays: Mapping[str, Array]) -> None:
    """Refuse arrays that an engine could only bind by copying them.

    Raises:
        ValueError: one is not C-contiguous.
    """
    for name, array in arrays.items():
        if not array.flags.c_contiguous:
            raise ValueError(f"{name}: only C-contiguous arrays can be bound, strides are {array.strides}")


def graph_name(path: Path) -> str:
    """What messages call a graph: with its folder, since the variants of a bundle have files of the same names."""
    return "/".join(path.parts[-2:])


def dtype_of(name: str) -> np.dtype[Any]:
    """numpy dtype of a `TensorSpec.dtype`."""
    return np.dtype(np.bool_ if name == "bool" else name)
