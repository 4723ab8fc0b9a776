"""Conversations on which a chat template is learned and checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, product

from pocketvlm.runtime.prompt import ImagePart, Message

IMAGE = ImagePart()
TEXT = ""  # the place of a text in a shape
Shape = tuple[str | ImagePart, ...]
Conversation = tuple[Message, ...]

# What a user's message may consist of: all pairs of neighbours, and all first and last parts.
_SHAPES: tuple[Shape, ...] = (
    (TEXT,),
    (IMAGE, TEXT),
    (TEXT, IMAGE),
    (IMAGE,),
    (TEXT, TEXT),
    (IMAGE, IMAGE, TEXT),
    (TEXT, IMAGE, TEXT),
)
_LONGER_SHAPES: tuple[Shape, ...] = (
    *_SHAPES,
    (IMAGE, TEXT, IMAGE, TEXT),
    (TEXT, TEXT, IMAGE),
    (IMAGE, IMAGE, IMAGE),
    (TEXT, IMAGE, IMAGE, TEXT, TEXT),
)
_TEXTS = (
    "What is on this screen?",
    "  spaced \n",
    "é🎉 漢字 हिन्दी עברית",
    "a\n\nb\n\n\nc\n",
    "{{x}} {% y %} {# z #} {}",
    '<b>&amp; "it\'s" \\n \\',
    "7",
    "<|im_end|></s>[/INST]<|eot_id|><end_of_turn>",
    "\u3000wide\u00a0",
    "What is on this screen?",
    "\tnone",
)


def learning_conversations(system: bool) -> Iterator[tuple[Conversation, bool]]:
    """(conversation, generation prompt): every joint at least once. The texts are to be filled with marks."""
    for heads in _heads(system):
        for shape in _SHAPES:
            for generation in (True, False):
                yield (*heads, Message("user", shape)), generation
        for first, second in product(_SHAPES[:4], repeat=2):
            yield (*heads, Message("user", first), Message("assistant", (TEXT,)), Message("user", second)), True


def answered_conversations(system: bool) -> Iterator[tuple[Conversation, bool]]:
    """The same for conversations that end with an answer, which have no generation prompt."""
    answer = Message("assistant", (TEXT,))
    for heads in _heads(system):
        for shape in _SHAPES[:4]:
            yield (*heads, Message("user", shape), answer), False
            yield (*heads, Message("user", (TEXT,)), answer, Message("user", shape), answer), False


def checking_conversations(system: bool, answered: bool, image_token: str) -> Iterator[tuple[Conversation, bool]]:
    """Conversations of one to four questions with odd texts and images in all places."""
    texts = cycle((*_TEXTS, f"the text {image_token}, no image"))
    plain = Message("user", (TEXT,))
    answer = Message("assistant", (TEXT,))
    for heads in _heads(system):
        for number, shape in enumerate(_LONGER_SHAPES):
            for turns in range(1, 5):
                shapes = [_LONGER_SHAPES[(number + turn * turns) % len(_LONGER_SHAPES)] for turn in range(turns)]
                shapes[-1] = shape
                for questions in ([Message("user", item) for item in shapes], [plain] * turns):
                    spoken = [message for question in questions for message in (question, answer)]
                    yield fill_texts((*heads, *spoken[:-1]), texts), True
                    if turns == 1:
                        yield fill_texts((*heads, *spoken[:-1]), texts), False
                    if answered:
                        yield fill_texts((*heads, *spoken), texts), False


def blank_conversations(role: str, system: bool) -> Iterator[Conversation]:
    """Conversations in which texts of `role` are empty or white space alone, and the user still asks something."""
    question, image = Message("user", ("a",)), Message("user", (IMAGE, "a"))
    for blank in ("", " ", " \n\n"):
        for heads in _heads(system):
            if role == "user":
                for parts in ((IMAGE, blank), (blank, IMAGE), ("a ", blank), (IMAGE, blank, IMAGE, " b"), ("a", blank, "b")):
                    yield (*heads, Message("user", parts))
                    yield (*heads, Message("user", parts), Message("assistant", ("b",)), Message("user", parts))
            elif role == "assistant":
                for asked in (question, image):
                    yield (*heads, asked, Message("assistant", (blank,)), asked)
            elif heads:
                for asked in (question, image):
                    yield (Message("system", (blank,)), asked)
                    yield (Message("system", (blank,)), asked, Message("assistant", ("b",)), asked)


def describe(conversation: Sequence[Message], generation: bool) -> str:
    """One line that names a conversation: "system, user (image, text) with generation prompt"."""
    names = []
    for message in conversation:
        kinds = ", ".join("image" if isinstance(part, ImagePart) else "text" for part in message.parts)
        names.append(f"{message.role} ({kinds})" if message.role == "user" else message.role)
    return f"{', '.join(names)} with{'' if generation else 'out'} generation prompt"


def _heads(system: bool) -> Iterator[Conversation]:
    yield ()
    if system:
        yield (Message("system", (TEXT,)),)


def fill_texts(conversation: Conversation, texts: Iterator[str]) -> Conversation:
    """Put texts, in order, where a conversation has TEXT."""
    return tuple(
        Message(message.role, tuple(next(texts) if part == TEXT else part for part in message.parts))
        for message in conversation
    )
