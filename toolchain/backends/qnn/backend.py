"""Targets `qnn:<SoC>`: vision blocks, connector and decoder as context binaries for the NPU, the rest on the CPU.

Precision (BlueLM-V-3B, section 3.4, nearest that the hardware runs): vision and connector with INT8 weights per channel,
decoder with INT4 weights, output projection with INT8 weights, all with 16-bit activations; cache in 8 bits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx

from pocketvlm.runtime.engines.qnn_provider import qairt_version
from pocketvlm.runtime.manifest import DeviceSpec, KvCacheSpec, StageSpec, VariantSpec
from pocketvlm.toolchain.backends.base import Check, Choice, Lowered, LowerJob, Needs
from pocketvlm.toolchain.backends.ort_cpu import WHOLE, cpu_stages, versions
from pocketvlm.toolchain.backends.qnn.compiler import Compiled, Compiler, place, provider_options
from pocketvlm.toolchain.backends.qnn.emulation import Emulation, wanted_graphs
from pocketvlm.toolchain.backends.qnn.environment import environment
from pocketvlm.toolchain.backends.qnn.graphs import Graphs, Part, write_graphs
from pocketvlm.toolchain.backends.qnn.needs import needs
from pocketvlm.toolchain.backends.qnn.settings import check_settings
from pocketvlm.toolchain.backends.qnn.socs import SOCS
from pocketvlm.toolchain.backends.qnn.tune import Tuner
from pocketvlm.toolchain.progress import Progress
from pocketvlm.toolchain.quantize.calibration import Conversation
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.spec import ModelSpec
from pocketvlm.toolchain.stages import VISION_STAGES
from pocketvlm.toolchain.verify import PartQuality
from pocketvlm.toolchain.weights import CanonicalWeights

_ENGINE = "onnxruntime-qnn"
_CPU_ENGINE = "onnxruntime"
_GRAPHS = "qnn_graphs"
_PROXY = "qnn-cpu"
_HALVES = {"vision": ("vision_encoder", "connector"), "decoder": ("prefill", "decode")}
# What all SoCs share.
_SHARED_FOLDER = "qnn"


class Qnn:
    """Compiles for one SoC."""

    builds_on_others = True
    default_context = 2048

    def __init__(self, target: str) -> None:
        self._target = target
        self._soc = SOCS[target.removeprefix("qnn:")]

    def check(self, spec: ModelSpec, recipe: ExportRecipe) -> None:
        """Refuse settings that this chip cannot follow, and a machine without the compiler.

        Raises:
            UsageError: naming the setting.
            EnvironmentFault: the package with the compiler is missing.
        """
        check_settings(self._target, self._soc, spec, recipe)
        qairt_version()

    def needs(self, spec: ModelSpec, recipe: ExportRecipe) -> Needs:
        """The compiler's memory, binaries and time."""
        return needs(spec, recipe)

    def environment(self, phone_runtime: str | None) -> list[Check]:
        """The C library, the compiler, and whether a phone's runtime can load what it makes."""
        return environment(self._soc, phone_runtime)

    def tune(
        self, spec: ModelSpec, weights: CanonicalWeights, recipe: ExportRecipe, scratch: Path, progress: Progress
    ) -> tuple[ExportRecipe, list[Choice]]:
        """Rank batches of tiles, chunk sizes and forms of attention by simulated times."""
        capacity = recipe.max_seq_len or min(spec.decoder.max_positions, self.default_context)
        return Tuner(self._soc, spec, weights, recipe, capacity, scratch, progress).tune()

    def lower(self, job: LowerJob) -> Lowered:
        """Write the graphs, unless another SoC of this export has, and compile them."""
        recipe = job.recipe
        chunk = min(recipe.chunk_size, job.capacity)
        if _GRAPHS not in job.shared:
            job.shared[_GRAPHS] = write_graphs(job, chunk)
        graphs: Graphs = job.shared[_GRAPHS]
        cpu = _on_cpu(job)
        checked, stages = dict(cpu), dict(cpu)
        for name, graph in graphs.positions.items():
            checked[name] = graph.spec
            stages[name] = self._positions(job, graph.spec)
        memory = int(recipe.qnn.memory_gb * 1e9)
        compiler = Compiler(self._soc, job.work / "compiled", memory, recipe.qnn.vtcm_mb)
        binaries: dict[str, Compiled] = {}
        shared = recipe.qnn.weight_sharing
        job.progress.stage(f"compile for {self._soc.name}", sum(1 if shared else len(part.graphs) for part in graphs.parts))
        for part in graphs.parts:
            checked |= {graph.stage: graph.spec for graph in part.graphs}
            stages |= self._compile(job, compiler, part, binaries)
        checked, stages = _in_order(checked), _in_order(stages)
        variant = VariantSpec(
            name=self._target.replace(":", "-"),
            target=self._target,
            precision=recipe.precision,
            engine=_ENGINE,
            engine_options=self._engine_options(recipe),
            vision_batch=recipe.qnn.vision_batch if "vision" in recipe.qnn.stages else recipe.vision_batch,
            stages=stages,
            kv_cache=self._cache(job, chunk) if "decoder" in recipe.qnn.stages else job.shared[WHOLE].kv_cache,
            toolchain={**versions(), "qairt": qairt_version()},
            device=DeviceSpec(self._soc.name, self._soc.model, self._soc.architecture, qairt_version()),
        )
        # Without optimizations the CPU rounds where the NPU does.
        options = {"graph_optimization": "disabled"}
        on_cpu = replace(variant, engine=_CPU_ENGINE, engine_options=options, stages=checked, device=None)

        def prove(root: Path, sample: Conversation) -> dict[str, PartQuality]:
            emulation = Emulation(job.work / "emulated", provider_options(self._soc, recipe.qnn.vtcm_mb), memory)
            wanted = wanted_graphs(graphs.parts, recipe.qnn.emulate)
            cosines = emulation.check(on_cpu, root, sample, wanted, job.progress)
            return {name: _quality(name, made, graphs.parts, cosines) for name, made in binaries.items()}

        return Lowered(variant, on_cpu, self._proxy(job, on_cpu, stages) if recipe.qnn.proxy else None, prove)

    def _proxy(self, job: LowerJob, on_cpu: VariantSpec, stages: dict[str, StageSpec]) -> VariantSpec:
        """The variant with the graphs as they were before they were compiled; the same for all SoCs."""
        if _PROXY not in job.shared:
            folder = job.folders(_PROXY)
            found = {}
            for name, stage in on_cpu.stages.items():
                if not Path(stage.file).is_absolute() or name.endswith("_positions"):
                    found[name] = stages[name]
                    continue
                files = [Path(file) for file in (stage.file, *stage.external_data)]
                for file in files:
                    place(file, folder / file.name)
                names = [f"{_PROXY}/{file.name}" for file in files]
                found[name] = replace(stage, file=names[0], external_data=tuple(names[1:]))
            job.shared[_PROXY] = replace(on_cpu, name=_PROXY, target=_PROXY, stages=found)
        proxy: VariantSpec = job.shared[_PROXY]
        return proxy

    def _engine_options(self, recipe: ExportRecipe) -> dict[str, str]:
        options = {**provider_options(self._soc, recipe.qnn.vtcm_mb), "htp_performance_mode": "burst"}
        shared = recipe.qnn.weight_sharing and "decoder" in recipe.qnn.stages
        return options | ({"shared_weights": "1"} if shared else {})

    def _cache(self, job: LowerJob, chunk: int) -> KvCacheSpec:
        decoder = job.spec.decoder
        return KvCacheSpec(
            dtype="int8", protocol="columns", layers=decoder.layers, kv_heads=decoder.kv_heads, head_dim=decoder.head_dim,
            capacity=job.capacity, chunk_size=chunk, keys_transposed=True,
        )  # fmt: skip

    def _positions(self, job: LowerJob, spec: StageSpec) -> StageSpec:
        folder = job.folders(_SHARED_FOLDER)
        for source in (spec.file, *spec.external_data):
            place(Path(source), folder / Path(source).name)
        names = [f"{_SHARED_FOLDER}/{Path(source).name}" for source in (spec.file, *spec.external_data)]
        return replace(spec, file=names[0], external_data=tuple(names[1:]), engine=_CPU_ENGINE)

    def _compile(self, job: LowerJob, compiler: Compiler, part: Part, binaries: dict[str, Compiled]) -> dict[str, StageSpec]:
        if job.recipe.qnn.weight_sharing or len(part.graphs) == 1:
            groups = {part.name: part.graphs}
        else:
            groups = {graph.stage: (graph,) for graph in part.graphs}
        stages = {}
        for name, graphs in groups.items():
            made = binaries[name] = compiler.compile(name, [graph.path for graph in graphs], [part.data])
            binary = f"{name}.bin"
            place(made.binary, job.folder / binary)
            for graph, context in zip(graphs, made.contexts, strict=True):
                _write_context(context, job.folder / f"{graph.stage}.onnx", binary)
                file = f"{job.prefix}/{graph.stage}.onnx"
                stages[graph.stage] = replace(graph.spec, file=file, external_data=(f"{job.prefix}/{binary}",))
            job.progress.note(_told(name, made))
            job.progress.advance(1)
        return stages


def _in_order(stages: dict[str, StageSpec]) -> dict[str, StageSpec]:
    """The stages in the order in which an answer needs them."""
    order = [*VISION_STAGES, "embed_tokens", "prefill_positions", "prefill", "decode_positions", "decode", "lm_head"]
    return {name: stages[name] for first in order for name in stages if name.partition(".")[0] == first}


def _on_cpu(job: LowerJob) -> dict[str, StageSpec]:
    """What the CPU runs: patch embedding and embedding table, and the half that the recipe leaves to it."""
    found = {name: replace(stage, engine=_CPU_ENGINE) for name, stage in cpu_stages(job).items()}
    for half, names in _HALVES.items():
        if half not in job.recipe.qnn.stages:
            whole: VariantSpec = job.shared[WHOLE]
            left = {name: whole.stages[name] for name in names}
            found |= {
                name: replace(stage, engine=whole.engine, engine_options=whole.engine_options) for name, stage in left.items()
            }
    return found


def _quality(name: str, made: Compiled, parts: tuple[Part, ...], cosines: dict[str, float]) -> PartQuality:
    stages = [graph.stage for part in parts for graph in part.graphs if name in (part.name, graph.stage)]
    found = {stage: cosines[stage] for stage in stages if stage in cosines}
    return PartQuality(made.binary.stat().st_size, made.seconds, made.peak_bytes, found)


def _told(name: str, made: Compiled) -> str:
    size = made.binary.stat().st_size / 1e6
    return f"{name}: {size:.1f} MB, compiled in {made.seconds:.0f} s with {made.peak_bytes / 1e9:.1f} GB of memory"


def _write_context(source: Path, target: Path, binary: str) -> None:
    """Copy a context model, with the name that its binary has in the bundle."""
    model = onnx.load(str(source), load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "ep_cache_context":
                attribute.s = binary.encode()
    target.write_bytes(model.SerializeToString(deterministic=True))
