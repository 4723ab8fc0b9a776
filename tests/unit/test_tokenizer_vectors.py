"""The files that the Kotlin tokenizer is tested with say what this runtime does today."""

from __future__ import annotations

import json

import pytest

from pocketvlm.runtime.tokenizer import Tokenizer
from tests.fixtures import tokenizer_vectors
from tests.fixtures.tokenizer_texts import texts

AGAIN = "run `python -m tests.fixtures.tokenizer_vectors`"


def test_texts_and_stop_strings() -> None:
    written = tokenizer_vectors.read()
    assert written["texts"] == texts(), AGAIN
    assert written["stop_strings"] == as_json(tokenizer_vectors.stop_strings()), AGAIN
    assert set(written["tokenizers"]) == set(tokenizer_vectors.tokenizer_files()), AGAIN


@pytest.mark.parametrize("name", tokenizer_vectors.tokenizer_files())
def test_vectors_of_a_tokenizer(name: str) -> None:
    path = tokenizer_vectors.tokenizer_files()[name]
    assert tokenizer_vectors.read()["tokenizers"][name] == as_json(tokenizer_vectors.vectors_of(path)), AGAIN


def test_vectors_of_added_tokens() -> None:
    assert tokenizer_vectors.read()["added_tokens"] == as_json(list(tokenizer_vectors.added_tokens())), AGAIN


def test_the_tokenizers_are_of_many_kinds() -> None:
    files = tokenizer_vectors.tokenizer_files()
    states = [json.loads(path.read_text()) for path in files.values()]
    assert {state["model"].get("type") for state in states} == {"BPE", "Unigram", "WordPiece", "WordLevel", None}
    assert len(texts()) >= 300
    assert all(Tokenizer.open(path).largest_text_id > 0 for path in files.values())


def as_json(found: object) -> object:
    return json.loads(json.dumps(found))
