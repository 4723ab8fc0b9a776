"""Text for calibration: a file, English prose that every Python carries, or what the model itself writes."""

from __future__ import annotations

import pydoc_data.topics
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from pocketvlm.errors import RecipeError
from pocketvlm.runtime.tokenizer import Tokenizer
from pocketvlm.toolchain.recipe import GENERATED

MAX_TEXT_BYTES = 64 * 1024 * 1024
# Tokens of a sequence of calibration text.
TEXT_LENGTH = 512
_HELD_OUT_CHARACTERS = 120_000
_SHOWN_CHARACTERS = 60
_JUDGED_CHARACTERS = 20_000
_MOST_CONTROLS, _MOST_UNKNOWN = 0.001, 0.02
# English takes about a quarter of a token per character, Chinese two thirds where the vocabulary was made for it. Letters or
# bytes one by one take more.
_MOST_TOKENS_PER_CHARACTER = 0.75
# One question tells less than a text. Four Chinese characters may take a token each, and one to begin with; spelled byte by
# byte, scripts other than Latin take nearly two and more for each.
_LEAST_LETTERS_OF_A_PROMPT, _MOST_UNKNOWN_OF_A_PROMPT, _MOST_TOKENS_PER_CHARACTER_OF_A_PROMPT = 4, 0.25, 1.25


def read_text(path: str | None, least: int = 1000) -> str:
    """Calibration text: a UTF-8 file, or by default English prose that every Python carries.

    Args:
        least: characters that a file must hold.

    Raises:
        RecipeError: the file cannot be read, is no UTF-8 text, too large or too short.
    """
    if path is None:
        return _default_text()[_HELD_OUT_CHARACTERS:]
    try:
        if Path(path).stat().st_size > MAX_TEXT_BYTES:
            raise RecipeError(f"calibration text {path!r} is larger than {MAX_TEXT_BYTES} bytes", "cut it")
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"calibration text {path!r} is not UTF-8 text", "name a plain text file") from None
    except OSError as error:
        raise RecipeError(
            f"calibration text {path!r} cannot be read: {error.strerror}", f"check the path, or say {GENERATED!r}"
        ) from None
    if not text.strip():
        raise RecipeError(f"calibration text {path!r} is empty", "name a text, or leave it out to take the one built in")
    start = text[:_JUDGED_CHARACTERS]
    if sum(character < " " and not character.isspace() for character in start) > _MOST_CONTROLS * len(start):
        raise RecipeError(f"calibration text {path!r} is binary: it is full of control characters", "name a plain text file")
    if len(text.strip()) < least:
        raise RecipeError(f"calibration text {path!r} is too short: {len(text.strip())} characters", f"at least {least}")
    return text


def token_ids(tokenizer: Tokenizer, path: str | None, most: int, *, any_script: bool = False) -> list[int]:
    """The first tokens of the text, about `most` of them or more; of the built-in one where the model writes its own.

    Args:
        any_script: leave out `check_script`.

    Raises: as `read_text` and `check_script`.
    """
    named = None if path == GENERATED else path
    text = read_text(named)
    if named is not None and not any_script:
        check_script(tokenizer, text, f"calibration text {named!r}")
    # Twelve characters per token is more than any tokenizer needs; a whole book need not be tokenised.
    return tokenizer.encode(text[: 12 * most], special=False)


def check_prompts(tokenizer: Tokenizer, prompts: Iterable[str]) -> None:
    """Refuse a question in a script, other than Latin, that the vocabulary was not made for, as `check_script` does texts.

    Raises:
        RecipeError: naming the question.
    """
    for prompt in prompts:
        # Digits, signs and Latin names may be many in a short question, and say nothing about the script of the rest.
        letters = "".join(filter(_is_not_latin, prompt)).strip()
        if sum(map(str.isalpha, letters)) >= _LEAST_LETTERS_OF_A_PROMPT:
            shown = prompt if len(prompt) <= _SHOWN_CHARACTERS else f"{prompt[:_SHOWN_CHARACTERS]}..."
            check_script(
                tokenizer,
                letters,
                f"calibration prompt {shown!r}",
                most_unknown=_MOST_UNKNOWN_OF_A_PROMPT,
                most_tokens=_MOST_TOKENS_PER_CHARACTER_OF_A_PROMPT,
            )


def _is_not_latin(character: str) -> bool:
    """A letter or mark of another script, or a space."""
    return unicodedata.category(character)[0] in "LMZ" and not unicodedata.name(character, "").startswith("LATIN ")


def check_script(
    tokenizer: Tokenizer,
    text: str,
    what: str,
    *,
    most_unknown: float = _MOST_UNKNOWN,
    most_tokens: float = _MOST_TOKENS_PER_CHARACTER,
) -> None:
    """Refuse text that the model's vocabulary was not made for: its statistics are not those of the text that users bring.

    Such text comes out as unknown tokens, or spelled byte by byte. A vocabulary that spells English, too, knows no better. The
    bounds are guesses, so that whoever knows better can have it otherwise.

    Args:
        what: what the text is, for messages.
        most_unknown: largest share of unknown tokens.
        most_tokens: most tokens per character, unless English takes half as many.

    Raises:
        RecipeError: saying what became of the text.
    """
    start = text[:_JUDGED_CHARACTERS]
    ids = tokenizer.encode(start, special=False)
    hint = "use the languages that the model is for, or set calibration.any_script: true if this is one of them"
    unknown = sum(token == tokenizer.unknown_id for token in ids) / max(len(ids), 1)
    if unknown > most_unknown:
        raise RecipeError(f"{what}: the tokenizer does not know {unknown:.0%} of its tokens", hint)
    rate = len(ids) / max(len(start), 1)
    if rate <= most_tokens:
        return
    english = held_out_text()[:_JUDGED_CHARACTERS]
    usual = len(tokenizer.encode(english, special=False)) / len(english)
    if rate > 2 * usual:
        raise RecipeError(
            f"{what} is in a script that the model's vocabulary was not made for: its tokenizer takes"
            f" {rate:.2f} tokens for each character, and {usual:.2f} for English",
            hint,
        )


def held_out_text() -> str:
    """The part of the default text that calibration never uses, for judging."""
    return _default_text()[:_HELD_OUT_CHARACTERS]


def _default_text() -> str:
    return "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))


def rows_of(token_ids: Sequence[int], tokens: int, length: int) -> list[list[int]]:
    """Whole sequences of `length` tokens, of at most `tokens` in all."""
    count = min(len(token_ids), tokens) // length
    return [list(token_ids[number * length : (number + 1) * length]) for number in range(count)]
