"""The variants that are made of an export's graphs: in the form before compilation, for the CPU, and compiled for a SoC."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pocketvlm.runtime.engines.qnn_provider import qairt_version
from pocketvlm.runtime.manifest import NPU_ENGINE, DeviceSpec, KvCacheSpec, StageSpec, VariantSpec
from pocketvlm.toolchain.backends import ort_cpu
from pocketvlm.toolchain.backends.base import LowerJob
from pocketvlm.toolchain.backends.qnn.compiler import place, provider_options
from pocketvlm.toolchain.backends.qnn.graphs import Part, chunk_of, write_graphs
from pocketvlm.toolchain.backends.qnn.socs import Soc
from pocketvlm.toolchain.stages import VISION_STAGES

_CPU_ENGINE = "onnxruntime"
_ON_CPU = "qnn-cpu"
_HALVES = {"vision": ("vision_encoder", "connector"), "decoder": ("prefill", "decode")}
# What all SoCs share.
_SHARED_FOLDER = "qnn"


def on_cpu(job: LowerJob) -> VariantSpec:
    """All stages as this machine's CPU runs them; those of the NPU, which compute what will be compiled, outside the bundle."""
    recipe, graphs = job.recipe, job.once(write_graphs)
    stages = {name: replace(stage, engine=_CPU_ENGINE) for name, stage in job.once(ort_cpu.cpu_stages).items()}
    for half, names in _HALVES.items():
        if half not in recipe.qnn.stages:
            whole = job.others[ort_cpu.TARGET]
            left = {name: whole.stages[name] for name in names}
            stages |= {
                name: replace(stage, engine=whole.engine, engine_options=whole.engine_options) for name, stage in left.items()
            }
    stages |= graphs.positions
    stages |= {graph.stage: graph.on_cpu or graph.spec for part in graphs.parts for graph in part.graphs}
    decoder = job.spec.decoder
    cache = KvCacheSpec(
        dtype="int8", protocol="columns", layers=decoder.layers, kv_heads=decoder.kv_heads, head_dim=decoder.head_dim,
        capacity=job.capacity, chunk_size=chunk_of(job), keys_transposed=True,
    )  # fmt: skip
    return VariantSpec(
        name=_ON_CPU,
        target=_ON_CPU,
        precision=recipe.precision,
        engine=_CPU_ENGINE,
        # Without optimizations the CPU rounds where the NPU does.
        engine_options={"graph_optimization": "disabled"},
        vision_batch=recipe.qnn.vision_batch if "vision" in recipe.qnn.stages else recipe.vision_batch,
        stages=_in_order(stages),
        kv_cache=cache if "decoder" in recipe.qnn.stages else job.others[ort_cpu.TARGET].kv_cache,
        toolchain={**ort_cpu.versions(), "qairt": qairt_version()},
    )


def proxy(job: LowerJob) -> VariantSpec:
    """A variant of the bundle with the very graphs that are compiled."""
    variant, folder = job.once(on_cpu), job.folders(_ON_CPU)
    stages = variant.stages | job.once(positions_stages)
    for part in job.once(write_graphs).parts:
        stages |= {graph.stage: _placed(graph.spec, folder, _ON_CPU) for graph in part.graphs}
    return replace(variant, stages=stages)


def positions_stages(job: LowerJob) -> dict[str, StageSpec]:
    """The graphs that tell the decoder about positions, in the bundle."""
    folder = job.folders(_SHARED_FOLDER)
    return {
        name: replace(_placed(spec, folder, _SHARED_FOLDER), engine=_CPU_ENGINE)
        for name, spec in job.once(write_graphs).positions.items()
    }


def binaries(job: LowerJob) -> list[Part]:
    """Graphs that go into one binary: those of a part, or each by itself where weights are not shared."""
    parts = job.once(write_graphs).parts
    if job.recipe.qnn.weight_sharing:
        return list(parts)
    return [
        replace(part, name=graph.stage if len(part.graphs) > 1 else part.name, graphs=(graph,))
        for part in parts
        for graph in part.graphs
    ]


def compiled(job: LowerJob, target: str, soc: Soc) -> VariantSpec:
    """The variant for one SoC. Of every binary there are `<graph>.onnx`, which stands for a graph, and `<binary>.bin`."""
    variant = job.once(on_cpu)
    stages = variant.stages | job.once(positions_stages)
    for binary in binaries(job):
        for graph in binary.graphs:
            file, data = f"{job.prefix}/{graph.stage}.onnx", f"{job.prefix}/{binary.name}.bin"
            stages[graph.stage] = replace(graph.spec, file=file, external_data=(data,))
            if len(binary.graphs) > 1:
                options = _options(job, soc) | {"shared_weights": "1"}
                stages[graph.stage] = replace(stages[graph.stage], engine=NPU_ENGINE, engine_options=options)
    return replace(
        variant,
        name=target.replace(":", "-"),
        target=target,
        engine=NPU_ENGINE,
        engine_options=_options(job, soc),
        stages=stages,
        device=DeviceSpec(soc.name, soc.model, soc.architecture, qairt_version()),
    )


def _options(job: LowerJob, soc: Soc) -> dict[str, str]:
    return {**provider_options(soc, job.recipe.qnn.vtcm_mb), "htp_performance_mode": "burst"}


def _placed(stage: StageSpec, folder: Path, prefix: str) -> StageSpec:
    """The stage with its files in a folder of the bundle."""
    files = [Path(file) for file in (stage.file, *stage.external_data)]
    for file in files:
        place(file, folder / file.name)
    names = [f"{prefix}/{file.name}" for file in files]
    return replace(stage, file=names[0], external_data=tuple(names[1:]))


def _in_order(stages: dict[str, StageSpec]) -> dict[str, StageSpec]:
    """The stages in the order in which an answer needs them."""
    order = [*VISION_STAGES, "embed_tokens", "prefill_positions", "prefill", "decode_positions", "decode", "lm_head"]
    return {name: stages[name] for first in order for name in stages if name.partition(".")[0] == first}
