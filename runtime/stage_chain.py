"""What graphs that run one after the other take from each other: the check of a stage, in one piece or in parts."""

from __future__ import annotations

from collections.abc import Sequence

from pocketvlm.errors import BundleError
from pocketvlm.runtime.manifest import StageSpec, TensorSpec

_EXPORT_AGAIN = "export the checkpoint again"


def check_chain(name: str, parts: Sequence[StageSpec], given: set[str], wanted: set[str]) -> None:
    """Refuse graphs whose inputs nothing gives, whose outputs nothing takes, or that disagree about a tensor.

    Args:
        name: what the chain is called in messages.
        parts: at least one graph, in the order in which they run.
        given: tensors that the reader hands to the chain; some part must take each of them.
        wanted: tensors that the reader takes from the chain. What else a part makes must be for a later one.

    Raises:
        BundleError: naming stage, file and tensor.
    """
    known: dict[str, TensorSpec] = {}
    made: set[str] = set()
    taken: set[str] = set()
    for part in parts:
        for tensor in part.inputs:
            if tensor.name not in given | made:
                raise _mismatch(name, part, {tensor.name})
            taken.add(tensor.name)
            same = known.setdefault(tensor.name, tensor)
            if (same.shape, same.dtype) != (tensor.shape, tensor.dtype):
                raise BundleError(
                    f"manifest.json: stage {name} ({part.file}) takes {tensor.name} as {tensor.dtype} {list(tensor.shape)}, "
                    f"an earlier part has it as {same.dtype} {list(same.shape)}",
                    _EXPORT_AGAIN,
                )
        for tensor in part.outputs:
            # A buffer per name: the second graph would write over what the first has read or made.
            if tensor.name in given | made:
                raise BundleError(f"manifest.json: stage {name} ({part.file}) makes {tensor.name} again", _EXPORT_AGAIN)
            made.add(tensor.name)
            known[tensor.name] = tensor
    difference = (given - taken) | (wanted - made) | (made - wanted - taken)
    if difference:
        raise _mismatch(name, parts[-1], difference)


def _mismatch(name: str, part: StageSpec, difference: set[str]) -> BundleError:
    shown = ", ".join(sorted(difference)[:4])
    return BundleError(
        f"manifest.json: stage {name} ({part.file}) differs from the contract's inputs and outputs in {shown}", _EXPORT_AGAIN
    )
