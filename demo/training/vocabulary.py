"""Characters and the tokenizer of the demo model: one token per printable character, bytes for the rest."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models

SPECIAL_TOKENS = ("<pad>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<image>", "<unk>")
PAD, BOS, END, SYSTEM, USER, ASSISTANT, IMAGE, UNKNOWN = range(len(SPECIAL_TOKENS))
CHARACTERS = "".join(chr(code) for code in range(32, 127)) + "\n"
FIRST_BYTE = len(SPECIAL_TOKENS)
FIRST_CHARACTER = FIRST_BYTE + 256
VOCAB_SIZE = FIRST_CHARACTER + len(CHARACTERS)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> Tokenizer:
    """Return a byte-fallback BPE tokenizer without merges: every known character is one token."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    vocabulary |= {f"<0x{value:02X}>": FIRST_BYTE + value for value in range(256)}
    vocabulary |= {character: FIRST_CHARACTER + index for index, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def encode(text: str) -> list[int]:
    """Token ids of printable text, for the training loop (no bytes, no specials)."""
    return [FIRST_CHARACTER + CHARACTERS.index(character) for character in text]
