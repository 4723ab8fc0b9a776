"""What the library auto-round makes of the same decoder: a row beside those of int4_methods.py.

    pip install auto-round==0.16.1
    python benchmarks/int4_autoround.py build/smollm2-llava

The language model runs in transformers' classes, which is what the library takes; text and judge are those of
int4_methods.py (`--text`, `--judge` and `--tokens` as there), blocks of 32 with zero points. The library's 200 iterations take
some fifty seconds a layer on two cores, and five with `--device cuda`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from auto_round import AutoRound
from int4_methods import BUILT_IN, SCHEMES, opened, table
from transformers import AutoTokenizer, LlamaForCausalLM, LlavaForConditionalGeneration

from pocketvlm.toolchain.quantize import calibration_text, distill
from pocketvlm.toolchain.quantize.calibration_text import TEXT_LENGTH

NAMES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def language_model(path: Path) -> LlamaForCausalLM:
    """The checkpoint's language model by itself, in float32."""
    whole = LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    model = LlamaForCausalLM(whole.config.text_config)
    model.model.load_state_dict(whole.model.language_model.state_dict())
    model.lm_head.load_state_dict(whole.lm_head.state_dict())
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", default=BUILT_IN, help=f"{BUILT_IN!r} or a file (default: %(default)s)")
    parser.add_argument("--judge", help="a file to judge by instead, of 8,192 tokens or more")
    parser.add_argument("--tokens", type=int, default=8192, help="of calibration text (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--device", default="cpu", help="where the library works: cpu or cuda (default: %(default)s)")
    arguments = parser.parse_args()
    decoder, weights, tokenizer, judge = opened(arguments.checkpoint, arguments.judge)
    found = calibration_text.token_ids(tokenizer, None if arguments.text == BUILT_IN else arguments.text, arguments.tokens)
    rows = [torch.tensor([row]) for row in calibration_text.rows_of(found, arguments.tokens, TEXT_LENGTH)]
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows if row.shape[1] == TEXT_LENGTH]
    start = time.perf_counter()
    library = AutoRound(
        language_model(arguments.checkpoint), AutoTokenizer.from_pretrained(arguments.checkpoint), bits=4, group_size=32,
        sym=False, iters=arguments.iterations, nsamples=len(data), seqlen=TEXT_LENGTH, batch_size=4, dataset=data,
        device_map=arguments.device, amp=False, enable_torch_compile=False,
    )  # fmt: skip
    result = library.quantize()
    model = (result[0] if isinstance(result, tuple) else result).float().cpu()
    minutes = (time.perf_counter() - start) / 60
    parameters = dict(model.named_parameters())
    values = {
        f"decoder.layers.{layer}.{mine}.weight": parameters[f"model.layers.{layer}.{theirs}.weight"].detach()
        for layer in range(decoder.layers)
        for mine, theirs in NAMES.items()
    }
    changed = sum(not torch.equal(value, weights(name)) for name, value in values.items())
    assert changed == len(values), f"auto-round changed {changed} of {len(values)} matrices"
    bits = SCHEMES["block 32"].bits_per_weight(decoder.hidden_size)
    with torch.no_grad():
        row = judge.row(
            "block 32", f"auto-round, {arguments.iterations} iterations", bits, minutes, distill.overlaid(weights, values)
        )
    print(table(judge.perplexity, [row]))


if __name__ == "__main__":
    main()
