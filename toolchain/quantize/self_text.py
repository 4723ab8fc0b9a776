"""Text that the checkpoint writes itself: calibration data without a download (LLM-QAT, arXiv 2305.17888, section 3.1).

Every sequence begins with a random token; the next few are the most likely ones, so that it soon reads like text, and the
rest are drawn from the model's own distribution, which reaches more of it than the likeliest tokens do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.nn import functional

from pocketvlm.toolchain import decoders
from pocketvlm.toolchain.spec import DecoderSpec
from pocketvlm.toolchain.torch_ops import EagerCache, TorchOps, Weights

_GREEDY_TOKENS = 3


class _BatchOps(TorchOps):
    """One token of many sequences at a time, over keys and values that lie in place."""

    def __init__(self, weights: Weights, decoder: DecoderSpec, sequences: int, length: int) -> None:
        super().__init__(weights)
        self._spec = decoder
        shape = (decoder.layers, sequences, decoder.kv_heads, length, decoder.head_dim)
        self._keys, self._values = torch.empty(shape), torch.empty(shape)
        self.past = 0
        self.attach_cache(decoder, EagerCache())

    def cached_attention(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int) -> Tensor:
        decoder, end = self._spec, self.past + 1
        rows = query.shape[0]
        q = self._rotate(query.reshape(rows, decoder.heads, 1, decoder.head_dim), self.past)
        k = self._rotate(key.reshape(rows, decoder.kv_heads, 1, decoder.head_dim), self.past)
        self._keys[layer, :, :, self.past] = k[:, :, 0]
        self._values[layer, :, :, self.past] = value.reshape(rows, decoder.kv_heads, decoder.head_dim)
        # The heads of a group are the rows of one product, so that their keys are read once.
        grouped = q.reshape(rows, decoder.kv_heads, -1, decoder.head_dim)
        mixed = functional.scaled_dot_product_attention(grouped, self._keys[layer, :, :, :end], self._values[layer, :, :, :end])
        return mixed.reshape(rows, 1, -1)


@torch.inference_mode()
def write_text(
    decoder: DecoderSpec,
    weights: Weights,
    *,
    sequences: int,
    length: int,
    forbidden: Collection[int],
    tokens: int,
    advance: Callable[[int], None],
    seed: int = 0,
) -> list[list[int]]:
    """Token ids, `sequences` lists of `length`.

    Args:
        weights: read anew for every token, so they should be in memory.
        forbidden: token ids that never appear: the image token, those that end an answer, other added ones.
        tokens: size of the tokenizer's vocabulary; ids from there on never appear either.
        advance: called with 1 after every position.
    """
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.ones(decoder.vocab_size, dtype=torch.bool)
    allowed[tokens:] = False
    allowed[[token for token in forbidden if token < decoder.vocab_size]] = False
    starts = allowed.nonzero()[:, 0]
    ids = starts[torch.randint(len(starts), (sequences, 1), generator=generator)]
    ops = _BatchOps(weights, decoder, sequences, length)
    found = [ids]
    while len(found) < length:
        logits = decoders.decode(ops, decoder, ops.embedding(ids, "decoder.embed"))
        logits = logits.masked_fill(~allowed, -torch.inf)
        if len(found) <= _GREEDY_TOKENS:
            ids = logits.argmax(-1, keepdim=True)
        else:
            ids = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        found.append(ids)
        ops.past += 1
        advance(1)
    rows: list[list[int]] = torch.cat(found, 1).tolist()
    return rows
