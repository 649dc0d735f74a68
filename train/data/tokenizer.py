"""How text becomes tokens and comes back unchanged: byte-level BPE, bytes, or a given `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from configs import schema
from train.data.sections import Corpus, DataError, spread

END_OF_TEXT = "<|endoftext|>"
# What the end of a text is called in tokenizers that others made.
END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|im_end|>", "<end_of_text>", "<|eot_id|>")
MAX_TRAINING_BYTES = 64 * 2**20

# Tokens never cross the borders of these pieces, tried in this order:
PIECES = "|".join(
    [
        r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+",  # a word with the space, dot, quote or underscore before it
        r" ?\p{N}{1,3}",  # up to three digits, so that numbers have few spellings
        r" ?[^\s\p{L}\p{M}\p{N}]+",  # punctuation and operators, with the space before them
        r"[\r\n]+[ \t]*",  # line ends with the indentation that follows
        r"\s+(?!\S)",  # other white space but for its last, which belongs to the word behind
        r"\s+",
    ]
)


def _byte_characters() -> list[str]:
    """The character by which byte-level tokenizers write each byte: itself if printable, else one from U+0100 on.

    The table of GPT-2 (Radford et al. 2019), which `tokenizers` uses but gives as a set only.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()


class Tokenizer:
    """Text to token numbers and back, exactly.

    Attributes:
      size: number of tokens V: one more than the largest.
      end_of_text: the token that stands between texts; no text encodes to it.
      byte_lengths: [V] int32, bytes of text that each token stands for; 0 for special tokens.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str = "the tokenizer") -> None:
        """Wraps a byte-level tokenizer of Hugging Face `tokenizers`.

        Raises:
          DataError: it has no end-of-text token, or does not give every text back exactly. `name` is for the message.
        """
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Text that merely contains the name of a special token is text.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.size = max(tokenizer.get_vocab().values()) + 1  # numbers may have gaps
        added = {number: token for number, token in tokenizer.get_added_tokens_decoder().items()}
        special = {token.content: number for number, token in added.items() if token.special}
        ends = [special[end] for end in END_NAMES if end in special]
        if not ends:
            raise DataError(
                f"{name} has no end-of-text token: its special tokens are {sorted(special) or 'none'}, "
                f"and one of {', '.join(END_NAMES)} is needed"
            )
        self.end_of_text: int = ends[0]
        bytes_of = {character: bytes([byte]) for byte, character in enumerate(BYTE_CHARACTERS)}
        self._bytes: list[bytes] = []
        for number in range(self.size):
            token = tokenizer.id_to_token(number) or ""
            if number in added:
                self._bytes.append(b"" if added[number].special else token.encode())
            else:
                self._bytes.append(b"".join(bytes_of.get(c, b"") for c in token))
        self.byte_lengths: np.ndarray = np.array([len(piece) for piece in self._bytes], np.int32)
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise DataError(f"{name} does not give text back exactly; a byte-level tokenizer is needed")

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Tokens of several texts, on all cores."""
        return [item.ids for item in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """The text of some tokens; special ones have none, and bytes that are not UTF-8 become U+FFFD."""
        return b"".join([self._bytes[number] for number in ids]).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for."""
        return self._bytes[id]

    def token_text(self, id: int) -> str:
        """The text of one token, or its name if it is special; bytes that are not UTF-8 by themselves as \\xNN."""
        return self._bytes[id].decode(errors="backslashreplace") or self._tokenizer.id_to_token(id) or ""

    def to_json(self) -> str:
        """The tokenizer as Hugging Face's `tokenizer.json`."""
        return self._tokenizer.to_str()

    @staticmethod
    def from_json(text: str, name: str = "the tokenizer") -> Tokenizer:
        """Reads what `to_json` wrote, or another byte-level `tokenizer.json`.

        Raises:
          DataError: it is not the description of a tokenizer that gives text back exactly.
        """
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # `tokenizers` raises nothing more specific
            raise DataError(f"{name} is not a tokenizer.json: {error}") from None
        # Normalizers (NFC in some models) would change the text.
        tokenizer.normalizer = None  # type: ignore[assignment]
        return Tokenizer(tokenizer, name)


# Every byte that UTF-8 has, and what tokenizers tend to lose.
_PROBE = "".join(map(chr, range(0x800))) + "".join(chr(0x1000 * i + 0x800) for i in range(16) if i != 13)
_PROBE += (
    "".join(chr(c) for c in (0x10000, 0x4E000, 0x80000, 0xC0000, 0x100000)) + f"  two  spaces \r\n{END_OF_TEXT}e\u0301 "
)


def make_tokenizer(config: schema.Tokenizer, corpus: Corpus) -> Tokenizer:
    """The tokenizer that the config asks for; `bpe` is trained on the training text (the same text, the same tokens).

    Raises:
      DataError: a given tokenizer.json is missing or cannot be used.
    """
    if config.source == "bpe":
        return _train_bpe(corpus, config.vocab_size)
    if config.source == "bytes":
        vocabulary = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
        return Tokenizer(_byte_level(models.BPE(vocab=vocabulary, merges=[]), split=False))
    path = Path(config.source)
    if not path.is_file():
        raise DataError(
            f"--tokenizer.source={config.source} is neither bpe, nor bytes, nor a tokenizer.json that exists"
        )
    return Tokenizer.from_json(path.read_text(encoding="utf-8"), f"--tokenizer.source={config.source}")


def _byte_level(model: models.Model, split: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [pre_tokenizers.Split(Regex(PIECES), behavior="isolated")] if split else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*pieces, byte_level])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _train_bpe(corpus: Corpus, size: int) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, Radford et al. 2019) with END_OF_TEXT as token 0."""
    tokenizer = _byte_level(models.BPE(), split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(BYTE_CHARACTERS),
        show_progress=False,
    )
    tokenizer.train_from_iterator((section.text for section in spread(corpus.train, MAX_TRAINING_BYTES)), trainer)
    return Tokenizer(tokenizer)
