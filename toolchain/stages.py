"""Runs the stages of one variant with its engine, for verification: no schedule, no cache of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from pocketvlm.runtime.decoder import Decoder
from pocketvlm.runtime.engines import load_engine
from pocketvlm.runtime.engines.protocol import Array, EngineSession
from pocketvlm.runtime.manifest import VariantSpec

VISION_STAGES = ("patch_embed", "vision_encoder", "connector")


@dataclass(frozen=True, slots=True)
class OpenStages:
    """Opened engine sessions by stage name, and the decoder on top of them."""

    variant: VariantSpec
    sessions: dict[str, EngineSession]
    decoder: Decoder

    def run(self, name: str, values: Array) -> Array:
        """Run a vision stage on a batch, one item at a time when its batch is fixed to a larger size."""
        stage = self.variant.stages[name]
        return run_single(self.sessions[name], stage.inputs[0].name, stage.outputs[0].name, values, stage.inputs[0].shape[0])


def run_single(session: EngineSession, source: str, target: str, values: Array, batch: int | str) -> Array:
    """Outputs of a stage for `values` [n, ...]; a fixed batch is filled by repeating the first item."""
    if isinstance(batch, str):
        return session.run({source: values})[target]
    import numpy as np

    results: list[NDArray[np.float32]] = []
    for start in range(0, len(values), batch):
        part = values[start : start + batch]
        missing = batch - len(part)
        full = np.concatenate([part, np.repeat(part[:1], missing, 0)]) if missing else part
        results.append(session.run({source: full})[target][: len(part)])
    return np.concatenate(results)


@contextmanager
def open_stages(variant: VariantSpec, root: Path, threads: int | None = None) -> Iterator[OpenStages]:
    """Open every stage of `variant`, whose files lie under `root`; equal files are opened once."""
    engine = load_engine(variant.engine)
    with ExitStack() as stack:
        by_file: dict[str, EngineSession] = {}
        sessions = {}
        for name, stage in variant.stages.items():
            if stage.file not in by_file:
                by_file[stage.file] = engine.open(root / stage.file, variant.engine_options, threads)
                stack.callback(by_file[stage.file].close)
            sessions[name] = by_file[stage.file]
        yield OpenStages(variant, sessions, Decoder(variant, sessions))
