"""A real language model, SmolLM2-135M-Instruct, through an unquantized bundle: the tokens are transformers' own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from pocketvlm.runtime import VlmSession
from pocketvlm.toolchain.checkpoint import Checkpoint
from pocketvlm.toolchain.export import export_checkpoint
from pocketvlm.toolchain.progress import SilentProgress
from pocketvlm.toolchain.recipe import ExportRecipe

ROOT = Path(__file__).resolve().parents[2]
NEW_TOKENS = 64
PROMPTS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain photosynthesis to a child.",
    "List three prime numbers.",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "How do I boil an egg?",
    "Tell me a fact about Mars.",
    "What does HTTP stand for?",
    "Write a Python function that adds two numbers.",
]


@pytest.mark.slow
def test_greedy_tokens_equal_transformers(tmp_path: Path) -> None:
    checkpoint_directory = tmp_path / "smollm2-llava"
    script = ROOT / "benchmarks" / "checkpoints" / "smollm2_llava.py"
    subprocess.run([sys.executable, str(script), str(checkpoint_directory)], check=True)
    with Checkpoint.open(str(checkpoint_directory)) as checkpoint:
        export_checkpoint(checkpoint, tmp_path / "bundle", ExportRecipe(precision="fp32"), SilentProgress())
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint_directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_directory)
    with VlmSession.open(tmp_path / "bundle") as session:
        for prompt in PROMPTS:
            messages = [{"role": "user", "content": prompt}]
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            with torch.inference_mode():
                output = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)
            expected = output[0, ids["input_ids"].shape[1] :].tolist()
            expected = expected[: expected.index(2)] if 2 in expected else expected
            stream = session.chat(messages, max_new_tokens=NEW_TOKENS)
            text = "".join(stream)
            assert list(stream.token_ids) == expected, prompt
            assert text == tokenizer.decode(expected, skip_special_tokens=True)
