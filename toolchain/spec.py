"""ModelSpec: everything that export needs to know about a model, as plain data.

An architecture file turns a checkpoint's config into a ModelSpec; encoders, connectors, decoders and backends read
nothing else. Tensors are known by canonical names (`vision.layers.0.q.weight`); the architecture renames.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocketvlm.errors import CheckpointError
from pocketvlm.runtime.manifest import ImageSpec, ImageTokensSpec, TilingSpec

MAX_LAYERS = 512
MAX_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """A vision transformer.

    Attributes:
        kind: name in the encoder table.
        feature_layers: hidden states that leave the tower, 0 being the embeddings, `layers` the last block's output;
            several are concatenated along the feature axis.
        class_token: whether the tower puts a class token before the patches.
        drop_first: whether the first position (class token or not) is dropped before the connector.
        final_norm: whether the closing layer norm is applied to the (single, last) feature layer.
    """

    kind: str
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    activation: str
    norm_eps: float
    feature_layers: tuple[int, ...]
    class_token: bool = False
    drop_first: bool = False
    final_norm: bool = False

    @property
    def blocks(self) -> int:
        """Blocks that are run and exported: those behind the last feature layer are not."""
        return max(self.feature_layers)

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def sequence_length(self) -> int:
        """Positions inside the tower, the class token included."""
        return self.patches_per_side**2 + int(self.class_token)

    @property
    def feature_count(self) -> int:
        """Positions that leave the tower."""
        return self.sequence_length - int(self.drop_first)

    @property
    def feature_size(self) -> int:
        """Size of a feature that leaves the tower."""
        return self.hidden_size * len(self.feature_layers)


@dataclass(frozen=True, slots=True)
class ConnectorSpec:
    """What stands between tower and decoder: optional token downsampling and a projector.

    Attributes:
        kind: name in the connector table.
        input_size: feature size of the tower's output.
        hidden_size: width between the two linear layers.
        output_size: hidden size of the decoder.
        side: patches per side of a tile, before merging.
        merge: side of the square of patches that become one token (1: none).
    """

    kind: str
    input_size: int
    hidden_size: int
    output_size: int
    activation: str
    bias: bool
    side: int
    merge: int = 1

    @property
    def merged_side(self) -> int:
        """Tokens per side of a tile, after merging."""
        return -(-self.side // self.merge)


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding. `scaling` is "none", "linear" or "llama3" with its parameters."""

    theta: float
    scaling: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A causal language model."""

    kind: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    norm_eps: float
    rope: RopeSpec
    max_positions: int
    activation: str = "silu"
    tie_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    @property
    def output_projection(self) -> str:
        """Canonical name of the layer that gives the logits: the embedding table itself when tied."""
        return "decoder.embed" if self.tie_embeddings else "decoder.lm_head"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole vision-language model.

    Attributes:
        image_token: text of the special token that images replace.
        stop_tokens: ids that end an answer.
    """

    architecture: str
    vision: VisionSpec
    connector: ConnectorSpec
    decoder: DecoderSpec
    tiling: TilingSpec
    image: ImageSpec
    image_tokens: ImageTokensSpec
    image_token: str
    stop_tokens: tuple[int, ...]

    @property
    def newline(self) -> bool:
        """Whether the model has a learned embedding that follows each row of the picture."""
        return bool(self.image_tokens.newline)


def check_spec(spec: ModelSpec) -> None:
    """Refuse sizes that no real model has, before anything of that size is allocated.

    Raises:
        CheckpointError: naming the field, its value and the limit.
    """
    limits = {
        "vision layers": (spec.vision.layers, 1, MAX_LAYERS),
        "vision hidden size": (spec.vision.hidden_size, 1, MAX_SIZE),
        "vision heads": (spec.vision.heads, 1, 1024),
        "vision image size": (spec.vision.image_size, 1, 16384),
        "vision patch size": (spec.vision.patch_size, 1, spec.vision.image_size),
        "vision positions": (spec.vision.sequence_length, 1, MAX_SIZE),
        "connector hidden size": (spec.connector.hidden_size, 1, MAX_SIZE),
        "decoder layers": (spec.decoder.layers, 1, MAX_LAYERS),
        "decoder hidden size": (spec.decoder.hidden_size, 1, MAX_SIZE),
        "decoder heads": (spec.decoder.heads, 1, 1024),
        "decoder key-value heads": (spec.decoder.kv_heads, 1, spec.decoder.heads),
        "decoder head size": (spec.decoder.head_dim, 2, 4096),
        "decoder intermediate size": (spec.decoder.intermediate_size, 1, MAX_SIZE),
        "vocabulary": (spec.decoder.vocab_size, 1, 1 << 22),
        "maximum position": (spec.decoder.max_positions, 1, 1 << 24),
        "vision layer_norm_eps": (spec.vision.norm_eps, 0, 0.1),
        "decoder rms_norm_eps": (spec.decoder.norm_eps, 0, 0.1),
        "rope_theta": (spec.decoder.rope.theta, 1, 1e12),
        "rope factor": (spec.decoder.rope.factor, 1e-6, 1e6),
        "rope low_freq_factor": (spec.decoder.rope.low_freq_factor, 1e-6, 1e6),
        "rope high_freq_factor": (spec.decoder.rope.high_freq_factor, 1e-6, 1e6),
        "rope original_max_position_embeddings": (spec.decoder.rope.original_max_positions, 1, 1 << 24),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise CheckpointError(f"config.json: {name} is {value}, not between {low} and {high}", "the config is damaged")
    rope = spec.decoder.rope
    if rope.scaling == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise CheckpointError(
            f"config.json: rope high_freq_factor {rope.high_freq_factor} is not above low_freq_factor {rope.low_freq_factor}",
            "the config is damaged",
        )
    for token in spec.stop_tokens:
        if not 0 <= token < spec.decoder.vocab_size:
            raise CheckpointError(
                f"eos_token_id {token} is outside the vocabulary of {spec.decoder.vocab_size}",
                "correct it in generation_config.json or config.json: without it no answer ends",
            )
    vision, decoder = spec.vision, spec.decoder
    if vision.hidden_size % vision.heads:
        raise CheckpointError(f"config.json: {vision.heads} vision heads do not divide the hidden size {vision.hidden_size}")
    if decoder.heads % decoder.kv_heads:
        raise CheckpointError(f"config.json: {decoder.kv_heads} key-value heads do not divide {decoder.heads} heads")
    if decoder.head_dim % 2:
        raise CheckpointError(f"config.json: head size {decoder.head_dim} is odd; rotary embeddings need pairs")
    if any(not 0 <= layer <= vision.layers for layer in vision.feature_layers) or not vision.feature_layers:
        raise CheckpointError(f"config.json: vision_feature_layer {vision.feature_layers} is outside 0..{vision.layers}")
