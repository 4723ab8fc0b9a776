"""Tokenizer, streaming decoder and stop strings against the `tokenizers` library and Python's own UTF-8 decoder."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pocketvlm.errors import BundleError, PromptError
from pocketvlm.runtime.tokenizer import StopStrings, StreamDecoder, Tokenizer

PROSE = [text for _, text in sorted(topics.items())][:12]
SPECIAL = ["<s>", "</s>", "<image>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(PROSE, trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet))
    # Added tokens that are not special are text; one of them is spelt with letters outside the byte alphabet.
    tokenizer.add_tokens(["<think>", "漢 字", "é"])
    return tokenizer


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2's: a prefix space by the normalizer, bytes for unknown characters, one space stripped on decoding."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(PROSE, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *SPECIAL, *BYTES]))
    state = json.loads(trained.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in BYTES]
    state["model"] |= {"byte_fallback": True, "fuse_unk": True}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def metaspace() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.train_from_iterator(PROSE, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *SPECIAL]))
    return tokenizer


def unigram() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(PROSE, trainer)
    return tokenizer


def word_piece() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(PROSE, trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]", *SPECIAL]))
    return tokenizer


def word_suffix() -> tokenizers.Tokenizer:
    """The decoder of the first BPE models: a token ends a word with "</w>", and the last one's space is dropped."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *SPECIAL], end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(PROSE, trainer)
    return tokenizer


def byte_level_and_more() -> tokenizers.Tokenizer:
    tokenizer = byte_level()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("~", "-")])
    return tokenizer


def no_decoder() -> tokenizers.Tokenizer:
    tokenizer = word_piece()
    tokenizer.decoder = None
    return tokenizer


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    build.__name__: build
    for build in (byte_level, byte_fallback, metaspace, unigram, word_piece, word_suffix, byte_level_and_more, no_decoder)
}


@functools.cache
def library(kind: str) -> tokenizers.Tokenizer:
    return KINDS[kind]()


@functools.cache
def reader(kind: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(library(kind).to_str()))


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(token_id) for token_id in ids), decoder.finish()]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=60))
@example("  two  spaces \n\n and é🎉漢字👩‍👩‍👧 here ")
@example("  ")
@example("")
def test_stream_of_encoded_text_equals_the_library(kind: str, text: str) -> None:
    ids = library(kind).encode(text).ids
    wanted = library(kind).decode(ids)
    pieces = stream(reader(kind), ids)
    assert "".join(pieces) == wanted
    assert reader(kind).decode(ids) == wanted
    if "\ufffd" not in wanted:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(0, 40))
def test_stream_of_any_tokens_equals_decode_and_the_library(kind: str, seed: int, length: int) -> None:
    size = library(kind).get_vocab_size()
    choice = random.Random(seed)
    ids = [choice.randrange(size + 2) for _ in range(length)]
    joined = "".join(stream(reader(kind), ids))
    assert joined == reader(kind).decode(ids)
    wanted = library(kind).decode(ids)
    if kind != "byte_fallback" or "\ufffd" not in wanted:
        assert joined == wanted


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=12) | st.text(max_size=6).map(str.encode), before=st.booleans(), after=st.booleans())
@example(b"\xe2\x82\xac\xe2", False, False)
@example(b"\x80", False, True)
@example(b"\xf0\x9f\x8e", True, True)
@example(b"\xe0\x80\x80", False, False)
def test_bytes_of_a_byte_fallback_tokenizer_decode_as_python_does(data: bytes, before: bool, after: bool) -> None:
    tokenizer = reader("byte_fallback")
    word = library("byte_fallback").encode("the").ids
    ids = [library("byte_fallback").token_to_id(BYTES[value]) for value in data]
    ids = word * before + ids + word * after
    wanted = (" the" * before + data.decode(errors="replace") + " the" * after).removeprefix(" ")
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == wanted


def test_a_token_without_text_does_not_make_the_next_one_the_first() -> None:
    names = ["a", "~", "\u2581b"]
    backend = tokenizers.Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Replace("~", ""), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for ids in ([0, 1, 2], [1, 2, 2], [0, 1, 1, 2, 1, 2]):
        assert "".join(stream(Tokenizer(backend), ids)) == backend.decode(ids)


def test_every_character_comes_as_soon_as_it_is_whole() -> None:
    for kind in ("byte_level", "byte_fallback"):
        ids = library(kind).encode("a🎉b").ids
        pieces = stream(reader(kind), ids)
        assert "🎉" in pieces
        assert pieces[-1] == ""


def test_an_unfinished_character_becomes_a_replacement_character_only_at_the_end() -> None:
    for kind in ("byte_level", "byte_fallback"):
        ids = library(kind).encode("a🎉").ids[:-1]
        pieces = stream(reader(kind), ids)
        assert "".join(pieces[:-1]) == "a"
        assert pieces[-1] == "\ufffd"


def test_special_and_unknown_tokens_have_no_text() -> None:
    tokenizer = reader("byte_level")
    ids = tokenizer.encode("a", special=False)
    special = [tokenizer.added_tokens[token] for token in SPECIAL]
    assert "".join(stream(tokenizer, [*special, *ids, *special, 999_999, *ids])) == "aa"
    assert tokenizer.special_ids == set(special)
    assert "<think>" in tokenizer.added_tokens
    assert "<think>" not in tokenizer.special_tokens


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=40))
@example("<s>a</s> b<image>")
def test_encode_with_specials_equals_the_library(kind: str, text: str) -> None:
    assert reader(kind).encode(text, special=True) == library(kind).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.sampled_from([*SPECIAL, "a", " ", "<", "image>", "\n", "the"]), max_size=8))
@example(["<s>"])
@example(["the", " ", "<image>", "the"])
def test_special_tokens_in_plain_text_are_never_special(kind: str, parts: list[str]) -> None:
    tokenizer, text = reader(kind), "".join(parts)
    ids = tokenizer.encode(text, special=False)
    special = {tokenizer.added_tokens[token] for token in SPECIAL}
    assert not set(ids) & special
    splitting = tokenizers.Tokenizer.from_str(library(kind).to_str())
    splitting.encode_special_tokens = True
    wanted = splitting.encode(text).ids
    assert ids == wanted or set(wanted) & special
    if kind.startswith("byte"):
        assert tokenizer.decode(ids) == text


def test_plain_text_that_the_model_itself_would_build_into_a_special_token_is_split() -> None:
    """Tokenizers converted from SentencePiece have merges that lead to "<s>"."""
    vocabulary = {"<unk>": 0, "<s>": 1, "<": 2, "s": 3, ">": 4, "s>": 5, "a": 6}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("s", ">"), ("<", "s>")], unk_token="<unk>"))
    backend.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("<unk>", normalized=False)])
    backend_without_added_token = tokenizers.Tokenizer(models.BPE(vocabulary, [("s", ">"), ("<", "s>")], unk_token="<unk>"))
    assert backend_without_added_token.encode("a<s>").ids == [6, 1]
    assert Tokenizer(backend).encode("a<s>", special=False) == [6, 2, 5]
    assert Tokenizer(backend).encode("a?", special=False) == [6, 0]


def test_plain_text_that_becomes_a_special_token_by_normalisation_is_refused() -> None:
    backend = tokenizers.Tokenizer(
        models.Unigram([("<unk>", 0.0), ("<s>", 0.0), ("a", -1.0), ("<", -5.0), ("s", -5.0), (">", -5.0)], 0)
    )
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken("<s>", normalized=False)])
    typed = "\N{FULLWIDTH LESS-THAN SIGN}s\N{FULLWIDTH GREATER-THAN SIGN}"
    assert backend.encode(typed).ids == [1]
    with pytest.raises(PromptError, match="cannot write as plain text"):
        Tokenizer(backend).encode(typed, special=False)


def test_padding_truncation_and_post_processing_of_the_file_do_not_apply(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_padding(length=64)
    backend.enable_truncation(4)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path / "tokenizer.json")
    text = "a long text that has more than four tokens"
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == text
    assert tokenizer.token_id("<s>") == 0
    assert tokenizer.token_id("no such token") is None


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(PromptError, match="not valid Unicode"):
        reader("byte_level").encode("a\ud83c", special=False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
        b'{"version": "1.0", "model": {"type": "Unigram", "unk_id": 5, "vocab": []}}',
        b'{"version": "1.0", "model": {"type": "Nothing"}}',
    ],
)
def test_broken_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json is no valid tokenizer\.json") as caught:
        Tokenizer.open(path)
    assert "\n" not in caught.value.message


def test_truncated_file_at_any_place(tmp_path: Path) -> None:
    text = library("byte_fallback").to_str().encode()
    path = tmp_path / "tokenizer.json"
    for length in range(0, len(text), len(text) // 20):
        path.write_bytes(text[:length])
        with pytest.raises(BundleError):
            Tokenizer.open(path)


def test_missing_and_too_large_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot read"):
        Tokenizer.open(tmp_path / "tokenizer.json")
    with pytest.raises(BundleError, match="cannot read"):
        Tokenizer.open(tmp_path)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(129 * 1024 * 1024)
    with pytest.raises(BundleError, match="at most"):
        Tokenizer.open(tmp_path / "large.json")


def run_stops(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    machine, shown = StopStrings(stops), ""
    for piece in pieces:
        text, stopped = machine.push(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + machine.finish(), False


@settings(max_examples=500, deadline=None)
@given(
    stops=st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3),
    pieces=st.lists(st.text("ab#", max_size=5), max_size=10),
)
@example(["aab"], ["aa", "aab", "x"])
@example(["ab", "b#a"], ["b#", "ab"])
@example(["ab#a", "b"], ["ab#a"])
def test_stop_strings_cut_at_the_one_that_is_complete_first(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    wanted, stopped = text, False
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            wanted, stopped = text[: end - max(map(len, ending))], True
            break
    assert run_stops(stops, list(text)) == (wanted, stopped)
    assert run_stops(stops, pieces) == (wanted, stopped)


def test_only_a_possible_stop_string_is_held_back() -> None:
    machine = StopStrings(["</end>"])
    assert machine.push("text </e") == ("text ", False)
    assert machine.push("m> more") == ("</em> more", False)
    assert machine.push("<") == ("", False)
    assert machine.push("/end> never") == ("", True)
    assert machine.push("again") == ("", True)
    assert machine.finish() == ""


@pytest.mark.parametrize("stops", [[""], ["a", ""], "stop"])
def test_bad_stop_strings(stops: list[str]) -> None:
    with pytest.raises(PromptError):
        StopStrings(stops)
