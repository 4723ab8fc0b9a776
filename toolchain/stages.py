"""Runs the stages of one variant with its engine, for verification: no schedule, no cache of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pocketvlm.runtime.decoder import Decoder
from pocketvlm.runtime.engines import load_engine
from pocketvlm.runtime.engines.protocol import Array, EngineSession
from pocketvlm.runtime.manifest import VariantSpec
from pocketvlm.runtime.vision import run_stage
from pocketvlm.runtime.vision_contract import STAGES as VISION_STAGES

__all__ = ["VISION_STAGES", "OpenStages", "open_sessions", "open_stages", "run_vision"]


@dataclass(frozen=True, slots=True)
class OpenStages:
    """Opened engine sessions by stage name, and the decoder on top of them."""

    variant: VariantSpec
    sessions: dict[str, EngineSession]
    decoder: Decoder

    def run(self, name: str, values: Array) -> Array:
        """Run a vision stage on `values` [n, ...], see `run_vision`."""
        return run_vision(self.variant, self.sessions, name, values)


def run_vision(variant: VariantSpec, sessions: Mapping[str, EngineSession], name: str, values: Array) -> Array:
    """Run a vision stage on `values` [n, ...] as the runtime does: in the variant's batches, the last one filled up.

    The batches matter: the last digits of INT8 activations depend on what else a call computes.
    """
    batch, chain = variant.vision_batch, variant.chain(name)
    opened, stages = [sessions[part] for part in chain], [variant.stages[part] for part in chain]
    parts = [run_stage(opened, stages, values[start : start + batch]) for start in range(0, len(values), batch)]
    return np.concatenate(parts)


@contextmanager
def open_sessions(
    variant: VariantSpec, root: Path, graphs: Iterable[str], threads: int | None = None
) -> Iterator[dict[str, EngineSession]]:
    """Open graphs of `variant`, whose files lie under `root`, by stage name; those that are the same session, once."""
    with ExitStack() as stack:
        opened: dict[object, EngineSession] = {}
        sessions = {}
        for name in graphs:
            key = variant.session_key(name)
            if key not in opened:
                engine, options = variant.engine_of(name)
                opened[key] = load_engine(engine).open(root / variant.stages[name].file, options, threads)
                stack.callback(opened[key].close)
            sessions[name] = opened[key]
        yield sessions


@contextmanager
def open_stages(variant: VariantSpec, root: Path, threads: int | None = None) -> Iterator[OpenStages]:
    """Open every stage of `variant`, and its decoder."""
    with open_sessions(variant, root, variant.stages, threads) as sessions:
        yield OpenStages(variant, sessions, Decoder(variant, sessions))
