"""Keeps text that a user typed from becoming a special token."""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken
from tokenizers.models import Unigram

from pocketvlm.errors import PromptError


def touches_untrusted(
    encoding: Any, text: str, stretches: Sequence[tuple[str, bool]], control: Mapping[int, str], unknown: int | None
) -> bool:
    """Whether a control token of an encoding was read from text that is not all trusted.

    Args:
        encoding: the library's Encoding of `text`.
        stretches: (text, trusted), which together make `text`.
        control: names of the control tokens by their ids.
        unknown: see `unknown_id`.
    """
    begins: list[int] = []
    ends: list[int] = []
    trusts: list[bool] = []
    position = 0
    for stretch, trusted in stretches:
        if trusted and trusts and trusts[-1]:
            ends[-1] += len(stretch)
        else:
            begins.append(position)
            ends.append(position + len(stretch))
            trusts.append(trusted)
        position += len(stretch)
    if all(trusts):
        return False
    for token_id, (begin, end), added in zip(encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True):
        if added or token_id not in control:
            continue
        # The span of a token that swallows white space around it is wider than the token's own text.
        place = text.find(control[token_id], begin, end)
        if place < 0 and token_id == unknown:
            continue
        index = bisect_right(begins, place) - 1
        if place < 0 or not trusts[index] or place + len(control[token_id]) > ends[index]:
            return True
    return False


def unknown_id(backend: tokenizers.Tokenizer) -> int | None:
    """Id of the token that a model writes for what its vocabulary lacks: a special token that any text may give."""
    model: Any = backend.model
    if isinstance(model, Unigram):
        unknown: int | None = json.loads(model.__getstate__())["unk_id"]
        return unknown
    return None if model.unk_token is None else backend.token_to_id(model.unk_token)


class TokenGuard:
    """A copy of a tokenizer in which control tokens have names that nobody can type.

    The copy reads the control tokens' own names as plain text (`encode_special_tokens`), and knows a secret name
    for each of them. Trusted text is written with the secret names; so both kinds of text are encoded in one call
    and the seams come out as they do without a guard.
    """

    def __init__(self, backend: tokenizers.Tokenizer, control: Sequence[Any], unknown: int | None) -> None:
        guard = tokenizers.Tokenizer.from_str(backend.to_str())
        guard.encode_special_tokens = True
        guard.add_special_tokens([_named(token, token.content, special=True) for token in control])
        secret = secrets.token_hex(16)
        self._secret_names = {token.content: f"<|{secret}.{index}|>" for index, token in enumerate(control)}
        self._seam = f"<|{secret}|>"
        guard.add_tokens([_named(token, self._secret_names[token.content], special=False) for token in control])
        guard.add_tokens([AddedToken(self._seam, special=False, normalized=False)])
        self._backend = guard
        self._real_ids = {_id(guard, name): _id(guard, token) for token, name in self._secret_names.items()}
        self._control_ids = frozenset(self._real_ids.values()) - {unknown}
        self._seam_id = _id(guard, self._seam)
        # Longest first, as the library matches.
        names = sorted(self._secret_names, key=len, reverse=True)
        self._control_text = re.compile("|".join(map(re.escape, names)))

    def encode(self, stretches: Sequence[tuple[str, bool]], add_special_tokens: bool) -> list[int]:
        """Token ids; see `Tokenizer.encode_mixed`."""
        encoding = self._encode(stretches, add_special_tokens)
        if self._forged(encoding):
            # Merges of a BPE model, or a Unigram or word vocabulary, can build a control token from its letters.
            split = [(text if trusted else self._split(text), trusted) for text, trusted in stretches]
            encoding = self._encode(split, add_special_tokens)
            if self._forged(encoding):
                raise PromptError("the text holds a special token that this tokenizer cannot write as plain text", "remove it")
        return [self._real_ids.get(token_id, token_id) for token_id in encoding.ids if token_id != self._seam_id]

    def _encode(self, stretches: Sequence[tuple[str, bool]], add_special_tokens: bool) -> Any:
        text = "".join(self._control_text.sub(self._secret, text) if trusted else text for text, trusted in stretches)
        return self._backend.encode(text, add_special_tokens=add_special_tokens)

    def _forged(self, encoding: Any) -> bool:
        return any(
            token_id in self._control_ids and not added
            for token_id, added in zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        )

    def _secret(self, match: re.Match[str]) -> str:
        return self._secret_names[match.group()]

    def _split(self, text: str) -> str:
        return self._control_text.sub(lambda match: match.group()[0] + self._seam + match.group()[1:], text)


def _id(backend: tokenizers.Tokenizer, token: str) -> int:
    token_id = backend.token_to_id(token)
    if token_id is None:
        raise PromptError(f"the tokenizer refuses to add {token!r}")
    return token_id


def _named(token: Any, content: str, *, special: bool) -> Any:
    return AddedToken(
        content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=special,
    )
