"""What bytes each token of a Hugging Face tokenizer stands for, read from how it puts tokens together to text."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import tokenizers

METASPACE = "▁"  # How tokenizers in the manner of SentencePiece write a space.
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # How they write a byte of what has no token.


def _byte_characters() -> list[str]:
    """The character by which byte-level tokenizers write each byte: itself if printable, else one from U+0100 on.

    The table of GPT-2 (Radford et al. 2019), which `tokenizers` uses but gives as a set only.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()


def token_pieces(tokenizer: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes of every token as it stands inside of a text, by number; none for special tokens and for gaps.

    Raises ValueError if the tokenizer's decoder is neither byte-level nor in the manner of SentencePiece.
    """
    steps = _decoder_steps(tokenizer)
    kinds = {step["type"] for step in steps}
    added = tokenizer.get_added_tokens_decoder()
    size = max(tokenizer.get_vocab().values()) + 1  # Numbers may have gaps.
    tokens = [tokenizer.id_to_token(number) or "" for number in range(size)]
    special = [number in added and added[number].special for number in range(size)]

    if "ByteLevel" in kinds:
        bytes_of = {character: bytes([byte]) for byte, character in enumerate(BYTE_CHARACTERS)}

        def piece(number: int) -> bytes:
            if number in added:
                return tokens[number].encode()
            return b"".join(bytes_of.get(character, b"") for character in tokens[number])

    elif "Metaspace" in kinds or any(_is_metaspace_replaced(step) for step in steps):
        has_byte_tokens = "ByteFallback" in kinds

        def piece(number: int) -> bytes:
            if has_byte_tokens and (byte := BYTE_TOKEN.fullmatch(tokens[number])):
                return bytes([int(byte[1], 16)])
            return tokens[number].replace(METASPACE, " ").encode()

    else:
        raise ValueError(f"its decoder is {' + '.join(step['type'] for step in steps) or 'none'}")
    return [b"" if special[number] else piece(number) for number in range(size)]


def first_spaces(tokenizer: tokenizers.Tokenizer) -> int:
    """How many spaces at most the first token of a text loses when tokens become text.

    Tokenizers in the manner of SentencePiece put a space before a text, and leave it out again.
    """
    for step in _decoder_steps(tokenizer):
        if step["type"] == "Metaspace" and step["prepend_scheme"] != "never":
            return sys.maxsize
        if step["type"] == "Strip" and step["content"] == " ":
            return step["start"]
    return 0


def _decoder_steps(tokenizer: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    """The decoder as `tokenizer.json` has it, a chain as its links."""
    if tokenizer.decoder is None:
        return []
    # What it gives to pickle is its JSON; that of the whole tokenizer would have the vocabulary in it.
    decoder = json.loads(tokenizer.decoder.__getstate__())
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _is_metaspace_replaced(step: dict[str, Any]) -> bool:
    return step["type"] == "Replace" and step["pattern"] == {"String": METASPACE} and step["content"] == " "
