"""What the stages of a decoder take and give, and in which order its graphs run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pocketvlm.errors import BundleError
from pocketvlm.runtime.manifest import TensorSpec, VariantSpec
from pocketvlm.runtime.stage_chain import check_chain

STAGES = ("embed_tokens", "prefill", "decode")


def decoder_chain(variant: VariantSpec, name: str) -> tuple[str, ...]:
    """The graphs of "prefill" or "decode" in the order in which they run, without lm_head."""
    positions = f"{name}_positions"
    return (*((positions,) if positions in variant.stages else ()), *variant.chain(name))


def stage_names(variant: VariantSpec) -> tuple[str, ...]:
    """All graphs of the decoder."""
    head = ("lm_head",) if "lm_head" in variant.stages else ()
    return ("embed_tokens", *decoder_chain(variant, "prefill"), *decoder_chain(variant, "decode"), *head)


def check_contract(variant: VariantSpec, chains: Mapping[str, Iterable[str]]) -> None:
    """Refuse graphs whose inputs nothing gives, whose outputs nothing takes, or whose shapes differ from each other.

    Raises:
        BundleError: naming stage and tensor.
    """
    cache, stages = variant.kv_cache, variant.stages
    past = {f"past_{kind}.{layer}" for kind in ("key", "value") for layer in range(cache.layers)}
    new = {name.replace("past", "present" if cache.protocol == "in_place" else "new") for name in past}
    head = stages.get("lm_head")
    for name, chain in chains.items():
        wanted = set(new)
        if head is not None:
            wanted.add("hidden")
        elif name == "decode" or any(tensor.name == "logits" for stage in chain for tensor in stages[stage].outputs):
            wanted.add("logits")
        check_chain(name, [stages[stage] for stage in chain], {"embeddings", "past_length", *past}, wanted)
    check_chain("embed_tokens", [stages["embed_tokens"]], {"token_ids"}, {"embeddings"})
    if head is not None:
        check_chain("lm_head", [head], {"hidden"}, {"logits"})
    for stage in (stages[stage] for stage in chains["prefill"]):
        fixed = any(tensor.name == "embeddings" and isinstance(tensor.shape[1], int) for tensor in stage.inputs)
        if fixed and cache.protocol == "in_place":
            # A padded chunk near the end would be written past the capacity.
            raise BundleError("manifest.json: stage prefill has a fixed length with the in_place cache protocol")
    if cache.keys_transposed and cache.protocol == "in_place":
        raise BundleError("manifest.json: transposed keys go with the cache protocol columns only")


def find_tensor(tensors: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    """The tensor called `name`, which `check_contract` has seen."""
    return next(tensor for tensor in tensors if tensor.name == name)


def last_size(tensor: TensorSpec) -> int:
    """Size of the last dimension.

    Raises:
        BundleError: it varies.
    """
    size = tensor.shape[-1] if tensor.shape else ""
    if not isinstance(size, int):
        raise BundleError(f"manifest.json: the last dimension of {tensor.name!r} must be a number, not {size!r}")
    return size
