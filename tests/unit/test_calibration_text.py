"""Text for calibration: bad files are refused by name, and the model's own text is the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
import torch

from pocketvlm.errors import RecipeError
from pocketvlm.runtime.tokenizer import Tokenizer
from pocketvlm.toolchain import decoders
from pocketvlm.toolchain.decoders import llama
from pocketvlm.toolchain.quantize.calibration_text import (
    check_prompts,
    check_script,
    held_out_text,
    read_text,
    rows_of,
    token_ids,
)
from pocketvlm.toolchain.quantize.self_text import write_text
from pocketvlm.toolchain.spec import DecoderSpec, RopeSpec
from pocketvlm.toolchain.torch_ops import EagerCache, TorchOps

SPEC = DecoderSpec("llama", 32, 2, 4, 2, 8, 48, 60, 1e-5, RopeSpec(10000.0), 256)
ENGLISH = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 40
RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 40


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Byte-level BPE that has seen English alone."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([held_out_text()], trainer)
    return Tokenizer(backend)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t \n" * 1000, "is empty"),
        (b"too short", "is too short: 9 characters"),
        (bytes(range(256)) * 20, "is not UTF-8 text"),
        (ENGLISH.encode("utf-16"), "is not UTF-8 text"),
        (b"\x00\x01\x02\x7f" * 1000, "is binary"),
    ],
)
def test_a_file_without_text_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=rf"text\.txt' {message}"):
        read_text(str(path))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "generate"):
        with pytest.raises(RecipeError, match="cannot be read") as caught:
            read_text(str(path))
        assert caught.value.hint is not None
        assert "'generated'" in caught.value.hint


def test_text_in_a_script_that_the_vocabulary_lacks_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "text.txt"
    path.write_text(RUSSIAN, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"script .* 1\.\d\d tokens for each character, and 0\.\d\d for English") as caught:
        token_ids(tokenizer, str(path), 100)
    assert "calibration.any_script: true" in caught.value.hint
    assert token_ids(tokenizer, str(path), 100, any_script=True) == tokenizer.encode(RUSSIAN[:1200], special=False)
    path.write_text(ENGLISH, encoding="utf-8")
    assert len(token_ids(tokenizer, str(path), 100)) >= 100


def test_a_vocabulary_that_spells_everything_takes_any_script() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([], tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    check_script(Tokenizer(backend), ENGLISH, "text.txt")
    check_prompts(Tokenizer(backend), ["Total?", "Что здесь написано?"])


def test_unknown_tokens_are_counted() -> None:
    letters = "abcdefghijklmnopqrstuvwxyzTQ,. "
    words = {letter: number for number, letter in enumerate(["<unk>", *letters])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    known = Tokenizer(backend)
    check_script(known, ENGLISH, "text.txt")
    with pytest.raises(RecipeError, match=r"does not know \d\d% of its tokens"):
        check_script(known, RUSSIAN, "text.txt")

    check_prompts(known, ["The dog, the fox and a lazy jaguar."])
    with pytest.raises(RecipeError, match=r"^calibration prompt 'Что здесь написано\?': .* does not know \d\d% of its tokens"):
        check_prompts(known, ["The dog.", "Что здесь написано?"])


def test_prompts_in_a_script_that_the_vocabulary_lacks_are_refused(tokenizer: Tokenizer) -> None:
    for prompt in ("Что здесь написано?", "图里有什么", "ما هذا؟", "Wi-Fi 密码是什么", "这张图里写了什么" * 20):
        with pytest.raises(RecipeError, match=r"^calibration prompt .* is in a script .* tokens for each character") as caught:
            check_prompts(tokenizer, ["What is it?", prompt])
        assert prompt[:60] in caught.value.message
        assert len(caught.value.message) < 250
        assert "calibration.any_script: true" in caught.value.hint


def test_short_prompts_and_signs_are_no_other_script(tokenizer: Tokenizer) -> None:
    check_prompts(
        tokenizer,
        [
            "OCR",
            "12:30",
            "\N{THUMBS UP SIGN}?",
            "Où ?",
            "QXZ 7",
            "Qu'est-ce qui est écrit ici ?",
            "Größe?",
            "Đây là gì?",
            "密码 OK?",
            "",
        ],
    )


def test_rows_are_whole() -> None:
    assert rows_of(list(range(10)), 100, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert rows_of(list(range(10)), 7, 4) == [[0, 1, 2, 3]]
    assert rows_of(list(range(3)), 7, 4) == []


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = llama.parameters(SPEC)
    return {name: torch.randn(shape, generator=generator) * (0.5 if len(shape) > 1 else 1.0) for name, shape in shapes.items()}


def written(seed: int) -> list[list[int]]:
    steps: list[int] = []
    rows = write_text(
        SPEC, weights().__getitem__, sequences=3, length=20, forbidden={7, 11, 999}, tokens=50, advance=steps.append, seed=seed
    )
    assert steps == [1] * 19
    return rows


def test_what_the_model_writes_is_the_same_for_the_same_seed_and_holds_nothing_forbidden() -> None:
    rows = written(0)
    assert rows == written(0)
    assert rows != written(1)
    assert [len(row) for row in rows] == [20, 20, 20]
    assert not {7, 11, *range(50, 60)} & {token for row in rows for token in row}


def test_the_second_token_is_the_eager_decoders_own() -> None:
    """The cache in place gives what the reference's growing one gives: the first tokens are greedy."""
    table = weights()
    allowed = [token for token in range(50) if token not in (7, 11)]
    for row in written(0):
        ops = TorchOps(table.__getitem__)
        ops.attach_cache(SPEC, EagerCache())
        logits = decoders.decode(ops, SPEC, ops.embedding(torch.tensor([row[:3]]), "decoder.embed"), all_positions=True)[0]
        assert [allowed[int(position[allowed].argmax())] for position in logits] == row[1:4]
