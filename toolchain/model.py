"""ModelSpec + weights -> the eager float32 model: the golden reference that export is judged by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pocketvlm.toolchain import decoders, encoders
from pocketvlm.toolchain.connectors import CONNECTORS
from pocketvlm.toolchain.decoders import DECODERS
from pocketvlm.toolchain.encoders import ENCODERS
from pocketvlm.toolchain.spec import ModelSpec
from pocketvlm.toolchain.torch_ops import EagerCache, Observer, ReadOnce, TorchOps, Weights


class EagerModel:
    """Runs every stage with PyTorch in float32. Nothing here knows of a backend."""

    def __init__(self, spec: ModelSpec, weights: Weights, observe: Observer | None = None) -> None:
        self.spec = spec
        self._weights, self._observe = weights, observe
        self._ops = TorchOps(weights, observe)
        self._encoder = ENCODERS.load(spec.vision.kind)
        self._connector = CONNECTORS.load(spec.connector.kind)
        self._decoder = DECODERS.load(spec.decoder.kind)

    @torch.inference_mode()
    def patch_embed(self, pixels: Tensor) -> Tensor:
        """Pixels float32 [B, 3, S, S] -> patch embeddings [B, N, D]."""
        return self._encoder.patch_embed(self._ops, self.spec.vision, pixels)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def vision_blocks(self, patches: Tensor) -> Tensor:
        """Patch embeddings [B, N, D] -> features [B, N, D']."""
        return encoders.blocks(self._ops, self.spec.vision, patches)

    @torch.inference_mode()
    def connect(self, features: Tensor) -> Tensor:
        """Features [B, N, D'] -> visual tokens [B, T, H]."""
        return self._connector.connect(self._ops, self.spec.connector, features)  # type: ignore[no-any-return]

    def encode_tiles(self, pixels: Tensor, batch: int = 4) -> Tensor:
        """Pixels [tiles, 3, S, S] -> visual tokens [tiles, T, H], `batch` tiles at a time."""
        return torch.cat([self.connect(self.vision_blocks(self.patch_embed(part))) for part in torch.split(pixels, batch)])

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Token ids -> embeddings [1, L, H]."""
        return self._ops.embedding(torch.tensor([list(token_ids)], dtype=torch.int64), "decoder.embed")

    @torch.inference_mode()
    def newline(self) -> Tensor | None:
        """The learned embedding [H] that follows a row of the picture, if the model has one."""
        return self._weights("newline") if self.spec.newline else None

    @torch.inference_mode()
    def decode(self, embeddings: Tensor, cache: EagerCache, *, all_positions: bool = False) -> Tensor:
        """Embeddings [1, L, H] -> logits [1, V] of the last position (or [1, L, V]); `cache` grows by L."""
        self._ops.attach_cache(self.spec.decoder, cache)
        return decoders.decode(self._ops, self.spec.decoder, embeddings, all_positions=all_positions)

    @torch.inference_mode()
    def prefill(self, embeddings: Tensor, cache: EagerCache, chunk_size: int) -> Tensor:
        """The chunked loop of the runtime: embeddings [1, L, H] -> logits [1, V] of the last position.

        All chunks go through a layer before the next one, which gives the numbers of one chunk after the other and reads
        weights that stream from disk once.
        """
        decoder = self.spec.decoder
        chunks = list(torch.split(embeddings, chunk_size, 1))
        for index in range(decoder.layers):
            ops = TorchOps(ReadOnce(self._weights), self._observe)
            ops.attach_cache(decoder, cache)
            chunks = [self._decoder.layer(ops, decoder, chunk, index) for chunk in chunks]
        return self._decoder.logits(self._ops, decoder, chunks[-1])  # type: ignore[no-any-return]

    def generate(self, embeddings: Tensor, max_new_tokens: int, *, chunk_size: int = 128) -> list[int]:
        """Greedy token ids after `embeddings` [1, L, H], the stop token excluded."""
        return [token for token, _ in self.follow(embeddings, max_new_tokens, chunk_size)]

    def follow(self, embeddings: Tensor, max_new_tokens: int, chunk_size: int) -> Iterator[tuple[int, Tensor]]:
        """As `generate`, each token with the logits [V] that it was picked from."""
        cache = EagerCache()
        logits = self.prefill(embeddings, cache, chunk_size)[0]
        for left in reversed(range(max_new_tokens)):
            token = int(logits.argmax())
            if token in self.spec.stop_tokens:
                return
            yield token, logits
            if left:
                logits = self.decode(self.embed([token]), cache)[0]
