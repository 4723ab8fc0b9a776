"""Target `ort-cpu`: ONNX Runtime's CPU kernels, on a phone or on the host.

Paper precision (BlueLM-V-3B, section 3.4, nearest that these kernels run): vision blocks and connector with INT8
weights per output channel and activations quantized per position (DynamicQuantizeMatMul); decoder with INT4 blocks
(MatMulNBits, INT8 activations inside the kernel); output projection and embedding table in 8-bit blocks; INT8 cache
with one scale per channel. The patch convolution, the norms and the softmax stay in float32.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from pocketvlm.errors import SettingError, UsageError
from pocketvlm.runtime.manifest import KvCacheSpec, StageSpec, TensorSpec, VariantSpec
from pocketvlm.toolchain.backends import ort_needs
from pocketvlm.toolchain.backends.base import Choice, Lowered, LowerJob, Needs
from pocketvlm.toolchain.backends.checks import Check
from pocketvlm.toolchain.backends.onnx_graph import GraphWriter, TensorFile
from pocketvlm.toolchain.backends.ort_decoder_ops import OrtDecoderOps
from pocketvlm.toolchain.backends.ort_ops import INT8_ENGINE_OPTIONS, OrtOps, Scheme
from pocketvlm.toolchain.backends.ort_profile import kernels_of
from pocketvlm.toolchain.progress import Progress
from pocketvlm.toolchain.quantize.block import BlockWeights, round_to_nearest
from pocketvlm.toolchain.quantize.scheme import WeightScheme
from pocketvlm.toolchain.recipe import ExportRecipe
from pocketvlm.toolchain.recipe import OrtCpu as OrtCpuSettings
from pocketvlm.toolchain.spec import ModelSpec
from pocketvlm.toolchain.split import cache_tensors, decoder_stage, embed_stage, vision_stages, write_cache
from pocketvlm.toolchain.weights import CanonicalWeights

TARGET = "ort-cpu"
_FLOAT = Scheme("float32")
_VISION_DATA = "vision.data"
_LANGUAGE_DATA = "language.data"


def versions() -> dict[str, str]:
    """What decides the numbers of a bundle, beside the checkpoint and the recipe."""
    found = {name: version(name) for name in ("onnxruntime", "onnx", "torch", "transformers")}
    # The last bits of calibration's sums depend on how many threads added them up.
    return found | {"python": platform.python_version(), "torch_threads": str(torch.get_num_threads())}


class OrtCpu:
    """Lowers all stages for ONNX Runtime's CPU execution provider."""

    builds_on_others = False
    default_context = 4096

    def __init__(self, target: str) -> None:
        self._target = target

    def check(self, spec: ModelSpec, recipe: ExportRecipe) -> None:
        """Refuse head sizes that GroupQueryAttention cannot take.

        Raises:
            SettingError: naming the size.
        """
        if spec.decoder.head_dim % 8:
            raise SettingError(
                "targets",
                f"target ort-cpu needs a head size divisible by 8, the model has {spec.decoder.head_dim}",
                "export for another target, see `pocketvlm list targets`",
            )

    def needs(self, spec: ModelSpec, recipe: ExportRecipe) -> Needs:
        """All its graphs."""
        return ort_needs.needs(spec, recipe, frozenset() if recipe.precision == "fp32" else frozenset({_scheme(recipe)}))

    def environment(self, phone_runtime: str | None) -> list[Check]:
        """Nothing beside the packages.

        Raises:
            UsageError: a phone's runtime was named.
        """
        if phone_runtime is not None:
            raise UsageError("target ort-cpu has no runtime of its own on the phone", "leave out --phone-runtime")
        return []

    def tune(
        self, spec: ModelSpec, weights: CanonicalWeights, recipe: ExportRecipe, scratch: Path, progress: Progress
    ) -> tuple[ExportRecipe, list[Choice]]:
        """Nothing: its kernels can be measured on the machine that shall run them.

        Raises:
            UsageError: always.
        """
        raise UsageError("target ort-cpu has no compiler that estimates times", "measure a bundle with `pocketvlm bench`")

    def lower(self, job: LowerJob) -> Lowered:
        """Write the graphs and two external data files into `job.folder`."""
        stages = _vision(job)
        cache = self._cache(job)
        stages |= self._language(job, cache)
        stages = {name: kernels_of(job.folder, job.prefix, name, stage, cache) for name, stage in stages.items()}
        variant = VariantSpec(
            name=self._target,
            target=self._target,
            precision=job.recipe.precision,
            engine="onnxruntime",
            engine_options=_engine_options(job.recipe),
            vision_batch=job.recipe.vision_batch,
            stages=stages,
            kv_cache=cache,
            toolchain=versions(),
        )
        return Lowered(variant, variant)

    def _cache(self, job: LowerJob) -> KvCacheSpec:
        decoder = job.spec.decoder
        return KvCacheSpec(
            dtype="float32" if job.kv_scales is None else "int8",
            protocol="in_place",
            layers=decoder.layers,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            capacity=job.capacity,
            chunk_size=min(job.recipe.chunk_size, job.capacity),
        )

    def _language(self, job: LowerJob, cache: KvCacheSpec) -> dict[str, StageSpec]:
        body, head, table = _schemes(job)
        found = {}
        with TensorFile(job.folder / _LANGUAGE_DATA) as tensors:
            found["embed_tokens"] = _embed_tokens(job, tensors, body, table)
            found["prefill"] = found["decode"] = self._decoder(job, tensors, "decoder", body, head, cache)
            if body.kind == "blocks" and job.recipe.prefill_weights == "int8":
                chunks = Scheme("int8", body.quantize)
                found["prefill"] = self._decoder(job, tensors, "prefill", chunks, None, cache)
            job.progress.advance(1)
        return found

    def _decoder(
        self, job: LowerJob, tensors: TensorFile, name: str, body: Scheme, head: Scheme | None, cache: KvCacheSpec
    ) -> StageSpec:
        """`head` None: the graph only fills the cache, so that the output projection need not be in memory twice."""
        job.progress.note(f"writing {name}")
        stage = decoder_stage(job.spec)
        graph = GraphWriter(name, tensors)
        past = TensorSpec("past_length", "int64", (1,))
        inputs = (stage.input, past, *cache_tensors(cache, "past"))
        outputs = cache_tensors(cache, "present")
        for tensor in inputs:
            graph.input(tensor)
        weights = job.weights if body.kind == "float32" else job.decoder(_scheme(job.recipe)).weights
        ops = OrtDecoderOps(graph, weights, body, head or body, job.spec.decoder, job.kv_scales, job.capacity)
        if head is None:
            write_cache(ops, job.spec, stage.input.name)
        else:
            graph.rename_output(stage.build(ops, stage.input.name), stage.output.name)
            outputs = (stage.output, *outputs)
        for tensor in outputs:
            graph.output(tensor)
        return _save(job, graph, _LANGUAGE_DATA, inputs, outputs)


def _engine_options(recipe: ExportRecipe) -> dict[str, str]:
    """What differs from the engine's defaults, so that readers that do not know an option open what does without it."""
    found = {} if recipe.precision == "fp32" else dict(INT8_ENGINE_OPTIONS)
    if recipe.ort_cpu != OrtCpuSettings():
        found["arm_kernels"] = recipe.ort_cpu.arm_kernels
    return found


def cpu_stages(job: LowerJob) -> dict[str, StageSpec]:
    """patch_embed and embed_tokens: what stays on the CPU whatever the target.

    They are those of target ort-cpu, if the bundle has it, and lie in a folder of their own otherwise.
    """
    if TARGET in job.others:
        return {name: job.others[TARGET].stages[name] for name in ("patch_embed", "embed_tokens")}
    own = replace(job, folder=job.folders("cpu"), prefix="cpu")
    found = _vision(own, ("patch_embed",))
    body, _, table = _schemes(own)
    with TensorFile(own.folder / _LANGUAGE_DATA) as tensors:
        found["embed_tokens"] = _embed_tokens(own, tensors, body, table)
    return found


def _vision(job: LowerJob, wanted: tuple[str, ...] | None = None) -> dict[str, StageSpec]:
    """The vision stages, or those of them that are wanted."""
    batch: int | str = job.recipe.vision_batch if job.recipe.fixed_vision_batch else "batch"
    scheme = _FLOAT if job.recipe.precision == "fp32" else Scheme("int8")
    found = {}
    with TensorFile(job.folder / _VISION_DATA) as tensors:
        for stage in vision_stages(job.spec, batch):
            if wanted is not None and stage.name not in wanted:
                continue
            job.progress.note(f"writing {stage.name}")
            graph = GraphWriter(stage.name, tensors)
            ops = OrtOps(graph, job.weights, scheme)
            graph.rename_output(stage.build(ops, graph.input(stage.input)), stage.output.name)
            graph.output(stage.output)
            found[stage.name] = _save(job, graph, _VISION_DATA, (stage.input,), (stage.output,))
            job.progress.advance(1)
    return found


def _embed_tokens(job: LowerJob, tensors: TensorFile, body: Scheme, table: Scheme) -> StageSpec:
    job.progress.note("writing embed_tokens")
    stage = embed_stage(job.spec)
    graph = GraphWriter(stage.name, tensors)
    ops = OrtDecoderOps(graph, job.weights, body, table, job.spec.decoder, job.kv_scales, job.capacity)
    graph.rename_output(stage.build(ops, graph.input(stage.input)), stage.output.name)
    graph.output(stage.output)
    return _save(job, graph, _LANGUAGE_DATA, (stage.input,), (stage.output,))


def _schemes(job: LowerJob) -> tuple[Scheme, Scheme, Scheme]:
    """Schemes of the decoder's layers, of the output projection and of the embedding table."""
    recipe = job.recipe
    if recipe.precision == "fp32":
        return _FLOAT, _FLOAT, _FLOAT
    block = recipe.decoder_weights.block_size

    def body(name: str) -> BlockWeights:
        return job.decoder(_scheme(recipe)).blocks(name)

    def eight_or_four(bits: int) -> Scheme:
        return Scheme("blocks", lambda name: round_to_nearest(job.weights(f"{name}.weight"), bits, block))

    head = eight_or_four(recipe.lm_head_bits)
    table = head if job.spec.decoder.tie_embeddings else eight_or_four(recipe.embedding_bits)
    return Scheme("blocks", body), head, table


def _scheme(recipe: ExportRecipe) -> WeightScheme:
    """What MatMulNBits takes."""
    return WeightScheme("block", recipe.decoder_weights.block_size, recipe.decoder_weights.symmetric)


def _save(
    job: LowerJob, graph: GraphWriter, data: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> StageSpec:
    path = job.folder / f"{graph.name}.onnx"
    graph.save(path)
    external = (f"{job.prefix}/{data}",) if graph.uses_external_data else ()
    return StageSpec(f"{job.prefix}/{path.name}", inputs, outputs, external)
