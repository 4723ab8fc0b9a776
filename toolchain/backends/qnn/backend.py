"""Targets `qnn:<SoC>`: vision blocks, connector and decoder as context binaries for the NPU, the rest on the CPU.

Precision (BlueLM-V-3B, section 3.4, nearest that the hardware runs): vision and connector with INT8 weights per channel,
decoder with INT4 weights, output projection with INT8 weights, all with 16-bit activations; cache in 8 bits.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from pocketvlm.runtime.engines.qnn_provider import PACKAGE, check_library
from pocketvlm.runtime.manifest import VariantSpec
from pocketvlm.toolchain.backends.base import Choice, Lowered, LowerJob, Needs
from pocketvlm.toolchain.backends.checks import Check
from pocketvlm.toolchain.backends.qnn import variants
from pocketvlm.toolchain.backends.qnn.compiler import Compiled, Compiler, compile_options, place
from pocketvlm.toolchain.backends.qnn.emulation import Agreement, Emulation, recordings
from pocketvlm.toolchain.backends.qnn.environment import environment
from pocketvlm.toolchain.backends.qnn.graphs import Part, write_graphs
from pocketvlm.toolchain.backends.qnn.needs import needs
from pocketvlm.toolchain.backends.qnn.settings import check_settings
from pocketvlm.toolchain.backends.qnn.socs import SOCS
from pocketvlm.toolchain.backends.qnn.tune import Tuner
from pocketvlm.toolchain.packages import require
from pocketvlm.toolchain.progress import Progress
from pocketvlm.toolchain.quality import PartQuality
from pocketvlm.toolchain.quantize.calibration import Conversation
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.spec import ModelSpec
from pocketvlm.toolchain.weights import CanonicalWeights


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
            SettingError: naming the setting.
            EnvironmentFault: the package with the compiler is missing, damaged or of another version.
        """
        check_settings(self._target, self._soc, spec, recipe)
        require(PACKAGE)
        check_library()

    def needs(self, spec: ModelSpec, recipe: ExportRecipe) -> Needs:
        """The compiler's memory, binaries and time."""
        return needs(spec, recipe, self._capacity(spec, recipe))

    def environment(self, phone_runtime: str | None) -> list[Check]:
        """The C library, the compiler, and whether a phone's runtime can load what it makes."""
        return environment(self._soc, phone_runtime)

    def tune(
        self, spec: ModelSpec, weights: CanonicalWeights, recipe: ExportRecipe, scratch: Path, progress: Progress
    ) -> tuple[ExportRecipe, list[Choice]]:
        """Rank batches of tiles, chunk sizes and forms of attention by simulated times."""
        return Tuner(self._soc, spec, weights, recipe, self._capacity(spec, recipe), scratch, progress).tune()

    def lower(self, job: LowerJob) -> Lowered:
        """Write the graphs, unless another SoC of this export has; they are compiled in the end."""
        checked = job.once(variants.on_cpu)
        proxy = job.once(variants.proxy) if job.recipe.qnn.proxy else None
        variant = variants.compiled(job, self._target, self._soc)

        def finish(root: Path, sample: Conversation) -> dict[str, PartQuality]:
            made = self._compile(job)
            agreements = self._emulate(job, checked, root, sample)
            return {binary.name: _quality(binary, made[binary.name], agreements) for binary in variants.binaries(job)}

        return Lowered(variant, checked, proxy, finish)

    def _compile(self, job: LowerJob) -> dict[str, Compiled]:
        """Compile, and put the results into the bundle; by name of the binary."""
        recipe, made = job.recipe, {}
        binaries = variants.binaries(job)
        compiler = Compiler(self._options(recipe), job.work / "compiled", _memory(recipe))
        job.progress.stage(f"compile for {self._soc.name}", len(binaries))
        sources = {binary.name: ([graph.path for graph in binary.graphs], [binary.data]) for binary in binaries}
        known = sum(compiler.has(*files) for files in sources.values())
        if known:
            job.progress.note(f"going on: {known} of {len(binaries)} parts had been compiled for {self._soc.name} before")
        for binary in binaries:
            found = made[binary.name] = compiler.compile(binary.name, *sources[binary.name])
            place(found.binary, job.folder / f"{binary.name}.bin")
            for graph, context in zip(binary.graphs, found.contexts, strict=True):
                _write_context(context, job.folder / f"{graph.stage}.onnx", f"{binary.name}.bin")
            job.progress.note(_told(binary.name, found))
            job.progress.advance(1)
        return made

    def _emulate(self, job: LowerJob, checked: VariantSpec, root: Path, sample: Conversation) -> list[tuple[str, Agreement]]:
        """Agreement of emulated graphs with the CPU, by stage."""
        recipe, wanted, found = job.recipe, [], []
        for graph in (graph for part in job.once(write_graphs).parts for graph in part.graphs):
            possible = graph.is_small or graph.first_layer is not None
            if recipe.qnn.emulate == "all" or (recipe.qnn.emulate == "small" and possible):
                wanted.append(graph)
            else:
                job.progress.note(f"{graph.stage}: not emulated ({graph.products / 1e9:.1f} billion products)")
        if not wanted:
            return []
        recorded = job.once(recordings).of(checked, root, sample, {graph.stage for graph in wanted})
        emulation = Emulation(job.work / "emulated", self._options(recipe), _memory(recipe), job.progress)
        shared = {graph.stage for binary in variants.binaries(job) if len(binary.graphs) > 1 for graph in binary.graphs}
        job.progress.stage(f"emulate {self._soc.name}", len(wanted))
        for graph in wanted:
            # Binaries that share weights end the process there.
            compiled = None if graph.stage in shared else job.folder / f"{graph.stage}.onnx"
            found.append((graph.stage, emulation.check(graph, recorded[graph.stage], compiled)))
            job.progress.advance(1)
        return found

    def _capacity(self, spec: ModelSpec, recipe: ExportRecipe) -> int:
        return recipe.max_seq_len or min(spec.decoder.max_positions, self.default_context)

    def _options(self, recipe: ExportRecipe) -> dict[str, str]:
        return compile_options(self._soc, recipe.qnn.vtcm_mb)


def _memory(recipe: ExportRecipe) -> int:
    return int(recipe.qnn.memory_gb * 1e9)


def _quality(binary: Part, made: Compiled, agreements: list[tuple[str, Agreement]]) -> PartQuality:
    stages = {graph.stage for graph in binary.graphs}
    found = [agreement for stage, agreement in agreements if stage in stages]
    exact = {
        item.what: {"npu": item.npu_float32, "cpu": item.cpu_float32}
        for item in found
        if item.npu_float32 is not None and item.cpu_float32 is not None
    }
    size = made.binary.stat().st_size
    return PartQuality(size, made.seconds, made.peak_bytes, {item.what: item.cosine for item in found}, exact)


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
