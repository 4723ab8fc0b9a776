"""The bundle's tokenizer.json: text -> token ids -> text, and text as it streams."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from pocketvlm.errors import BundleError, PromptError
from pocketvlm.runtime.bundle import Bundle
from pocketvlm.runtime.token_guard import TokenGuard, touches_untrusted, unknown_id

MAX_TOKENIZER_BYTES = 128 * 1024 * 1024
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A Hugging Face fast tokenizer, without its padding and truncation."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        added: Mapping[int, Any] = backend.get_added_tokens_decoder()
        self._flags = {token.content: token for token in added.values()}
        self._added = {token.content: token_id for token_id, token in added.items()}
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._unknown = unknown_id(backend)
        self._guards: dict[frozenset[str], TokenGuard] = {}

    @classmethod
    def open(cls, path: Path, name: str | None = None) -> Tokenizer:
        """Read a tokenizer.json.

        Args:
            name: what messages call it; its path unless given.

        Raises:
            BundleError: the file is missing, larger than MAX_TOKENIZER_BYTES, or no valid tokenizer.
        """
        hint, name = "copy the bundle again or export it again", name or str(path)
        try:
            size = path.stat().st_size
            if size > MAX_TOKENIZER_BYTES:
                raise BundleError(f"{name} holds {size} bytes; at most {MAX_TOKENIZER_BYTES} are read", hint)
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"cannot read {name}: {error.strerror}", hint) from None
        try:
            return cls(tokenizers.Tokenizer.from_buffer(data))
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic in the library's Rust code does not derive from Exception
            raise BundleError(f"{name} is no valid tokenizer.json: {_one_line(error)}", hint) from None

    @classmethod
    def of(cls, bundle: Bundle) -> Tokenizer:
        """The tokenizer of a bundle.

        Raises:
            BundleError: see `open`; or its id of the image token is not the manifest's.
        """
        file = bundle.manifest.tokenizer.file
        tokenizer = cls.open(bundle.path(file), file)
        token, wanted = bundle.manifest.prompt.image_token, bundle.manifest.tokenizer.image_token_id
        found = tokenizer.token_id(token)
        if found != wanted:
            raise BundleError(
                f"manifest.json: image_token_id is {wanted}, the tokenizer's id of {token!r} is {found}",
                "export the checkpoint again",
            )
        return tokenizer

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Tokens that are found in text before the model splits it, special or not, with their ids."""
        return MappingProxyType(self._added)

    @property
    def unknown_id(self) -> int | None:
        """Id of the token that stands for what the vocabulary cannot express, if there is one."""
        return self._unknown

    @property
    def special_tokens(self) -> frozenset[str]:
        """The added tokens that are marked as special: `decode` leaves them out."""
        return frozenset(content for content, token in self._flags.items() if token.special)

    @property
    def largest_text_id(self) -> int:
        """Largest id that text can become: special tokens are not made from text."""
        ids = list(self._backend.get_vocab(with_added_tokens=False).values())
        ids += [self._added[content] for content, token in self._flags.items() if not token.special]
        return max(ids, default=-1)

    def token_id(self, token: str) -> int | None:
        """Id of a token by its exact name, or None."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of `text`; nothing is added at its ends.

        Args:
            special: whether special tokens that stand in the text are recognised; otherwise they are plain text.

        Raises:
            PromptError, BundleError: see `encode_mixed`.
        """
        return self.encode_mixed([(text, special)], self.special_tokens)

    def encode_mixed(
        self, stretches: Sequence[tuple[str, bool]], control: frozenset[str], add_special_tokens: bool = False
    ) -> list[int]:
        """Encode text that is put together from trusted and untrusted stretches, as one text.

        Where no control token touches an untrusted stretch, this is one call of the library for the whole text:
        merges and prefix spaces at the seams come out as Hugging Face's. Otherwise a second tokenizer encodes it,
        see token_guard.py.

        Args:
            stretches: (text, trusted) in order.
            control: the added tokens that are recognised in trusted stretches only.
            add_special_tokens: let the tokenizer's post-processor add its tokens at the ends.

        Raises:
            PromptError: an untrusted stretch gives a control token however it is split, or is not valid Unicode.
            BundleError: the tokenizer itself fails.
        """
        text = "".join(stretch for stretch, _ in stretches)
        try:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError):
            raise PromptError("the text is not valid Unicode", "it holds half of a surrogate pair") from None
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic, as above: a pattern that runs away, for example
            raise BundleError(f"tokenizer.json fails on this text: {_one_line(error)}", "export the checkpoint again") from None
        names = {self._added[token]: token for token in control}
        if not touches_untrusted(encoding, text, stretches, names, self._unknown):
            return list(encoding.ids)
        if control not in self._guards:
            tokens = [self._flags[token] for token in sorted(control)]
            self._guards[control] = TokenGuard(self._backend, tokens, self._unknown)
        return self._guards[control].encode(stretches, add_special_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out.

        As Hugging Face's, but for one thing: where bytes of a byte-fallback tokenizer are no valid UTF-8, only the
        damaged characters become U+FFFD, not every byte of the run, so that it equals what was streamed.
        """
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        if _REPLACEMENT not in text:
            return text
        stream = StreamDecoder(self)
        return "".join([*map(stream.push, ids), stream.finish()])


class StreamDecoder:
    """Turns token ids into text as they come, never half of a character.

    The concatenation of all that `push` and `finish` return equals `Tokenizer.decode` of all ids. A push costs as
    much as decoding two tokens.

    The tokens of a byte-level tokenizer go through an incremental UTF-8 decoder. For the others, the text of a token
    is what it adds to the text of its predecessor, since decoders treat a token by its neighbour (the space that a
    first token loses, "##" of WordPiece); the bytes of a byte-fallback tokenizer wait until they make a character.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._backend = tokenizer._backend
        self._special_ids = tokenizer.special_ids
        decoder = self._backend.decoder
        steps = _decoder_steps(json.loads(decoder.__getstate__())) if decoder is not None else set()
        self._byte_level = "ByteLevel" in steps and steps <= {"ByteLevel", "Fuse"}
        self._splits_characters = "ByteLevel" in steps
        self._byte_fallback = "ByteFallback" in steps
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._bytes = b""
        self._byte_ids: list[int] = []
        self._context: list[int] = []
        self._waiting: list[int] = []

    def push(self, token_id: int) -> str:
        """Text that is certain after one more token; may be empty. Special and unknown tokens have none."""
        token = None if token_id in self._special_ids else self._backend.id_to_token(token_id)
        if token is None:
            return ""
        if self._byte_level:
            return self._utf8.decode(_bytes_of(token))
        match = _BYTE_TOKEN.match(token) if self._byte_fallback else None
        if match:
            return self._push_byte(token_id, int(match[1], 16))
        return self._drop_bytes() + self._push_tokens([token_id])

    def finish(self) -> str:
        """Text that was held back; an unfinished character becomes U+FFFD. Nothing may be pushed afterwards."""
        if self._byte_level:
            return self._utf8.decode(b"", final=True)
        return self._drop_bytes() + self._push_tokens([], final=True)

    def _push_tokens(self, ids: list[int], final: bool = False) -> str:
        self._waiting += ids
        if not self._waiting:
            return ""
        known = self._decode(self._context)
        text = self._decode(self._context + self._waiting)[len(known) :]
        if self._splits_characters and text.endswith(_REPLACEMENT) and not final:
            return ""
        # A token without text is no neighbour that the next one could lean on.
        self._context = self._waiting if text else self._context + self._waiting
        self._waiting = []
        return text

    def _push_byte(self, token_id: int, value: int) -> str:
        """Whole characters go to the decoder, so that it never sees a run of bytes that is no valid UTF-8."""
        damaged = ""
        if self._bytes and not _may_begin_character(self._bytes + bytes([value])):
            damaged = self._drop_bytes()
        self._bytes += bytes([value])
        self._byte_ids.append(token_id)
        if not _may_begin_character(self._bytes):
            return damaged + self._drop_bytes()
        try:
            self._bytes.decode()
        except UnicodeDecodeError:
            return damaged
        ids, self._bytes, self._byte_ids = self._byte_ids, b"", []
        return damaged + self._push_tokens(ids)

    def _drop_bytes(self) -> str:
        if not self._bytes:
            return ""
        self._bytes, self._byte_ids = b"", []
        if not self._context:
            # U+FFFD now stands first, so what follows must not be decoded as the beginning of the text.
            self._context = list(self._backend.encode("a", add_special_tokens=False).ids)
        return _REPLACEMENT

    def _decode(self, ids: list[int]) -> str:
        text: str = self._backend.decode(ids, skip_special_tokens=True)
        return text


class StopStrings:
    """Ends a stream of text at the string that is complete first, in whichever pieces the text comes.

    Text that may become a stop string is held back until it is clear. A stop string is never part of the output.

    Args:
        stops: the strings; an empty one is an error.

    Raises:
        PromptError: an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise PromptError("stop strings must be a list of texts that are not empty", "leave the empty one out")
        self._stops = tuple(stops)
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Add text. Returns the text that may be shown, and whether a stop string has been found."""
        if self._stopped:
            return "", True
        if not self._stops:
            return text, False
        self._held += text
        found = [(place + len(stop), place) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            shown, self._held, self._stopped = self._held[: min(found)[1]], "", True
            return shown, True
        begin = min(self._possible(stop) for stop in self._stops)
        shown, self._held = self._held[:begin], self._held[begin:]
        return shown, False

    def finish(self) -> str:
        """The text that was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _possible(self, stop: str) -> int:
        """Where the longest tail of the held text begins that `stop` begins with."""
        length = len(self._held)
        return next(
            (begin for begin in range(max(0, length - len(stop) + 1), length) if stop.startswith(self._held[begin:])), length
        )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable Latin-1 characters stand for themselves, the others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + index): value for index, value in enumerate(others)}


_BYTE_ALPHABET = _byte_alphabet()


def _bytes_of(token: str) -> bytes:
    """Bytes of a byte-level token. An added token may hold characters outside the alphabet: it is plain text."""
    try:
        return bytes(map(_BYTE_ALPHABET.__getitem__, token))
    except KeyError:
        return token.encode()


def _may_begin_character(data: bytes) -> bool:
    """Whether `data` is one UTF-8 character or the beginning of one."""
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError as error:
        return error.start == 0 and error.reason == "unexpected end of data"


def _decoder_steps(state: Mapping[str, Any]) -> set[str]:
    """Names of the decoders that a decoder from tokenizer.json is made of."""
    if state["type"] == "Sequence":
        return set().union(*map(_decoder_steps, state["decoders"]))
    return {str(state["type"])}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
