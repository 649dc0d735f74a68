"""How text becomes tokens and comes back: byte-level BPE, bytes, words, or a tokenizer that others made."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from configs import schema
from train.data.chat import HIDES, ChatError, ChatTemplate
from train.data.pieces import BYTE_CHARACTERS, first_spaces, token_pieces
from train.data.sections import Corpus, DataError, Section, spread

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
UNKNOWN = "<|unknown|>"
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


# What `Tokenizer.to_json` writes beyond Hugging Face's JSON of a tokenizer that came with a checkpoint.
ENDS, START, CHAT = "end_of_text", "start_of_target", "chat_template"


class Tokenizer:
    """Text to token numbers and back.

    Ours give every text back exactly. An imported one may not (`exact` says so): T5's makes several spaces one, for
    instance. What is measured per byte of text is then per byte of the text that its tokens give back.

    Attributes:
      size: number of tokens V: one more than the largest.
      end_of_text: the token that stands between texts; no text encodes to it.
      ends: all tokens that end a text, `end_of_text` first: models that chat have one for the end of a turn as well.
      start_of_target: the token that a translation begins after: `end_of_text`, unless the checkpoint says otherwise.
      chat: how messages become a text, or None.
      mask: the token that stands for one to be filled in, or None.
      exact: whether every text comes back as it was.
      first_spaces: how many spaces before a text are the tokenizer's own, and not the text's.
      byte_lengths: [V] int32, bytes of text that each token stands for; 0 for special tokens.

    A network may know more numbers than there are tokens: they stand for no text.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        name: str = "the tokenizer",
        ends: Sequence[int] | None = None,
        start_of_target: int | None = None,
        chat: ChatTemplate | None = None,
    ) -> None:
        """Wraps a tokenizer of Hugging Face `tokenizers`: byte-level, or in the manner of SentencePiece.

        Args:
          name: for messages.
          ends: of a tokenizer that came with a checkpoint, the tokens that end a text there, the main one first; or
            none, where only their names tell. Such a tokenizer reads a text as it always did: some put a token before
            it (Llama) or behind it (T5), some do not (GPT-2). Where this is not given, texts begin with `end_of_text`.
          start_of_target: as the attribute.
          chat: as the attribute.

        Raises:
          DataError: it has no end-of-text token, or it is of another kind.
        """
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Text that merely contains the name of a special token is text.
        tokenizer.encode_special_tokens = True
        self._tokenizer, self._imported, self.chat = tokenizer, ends is not None, chat
        try:
            self._bytes, self.first_spaces = token_pieces(tokenizer), first_spaces(tokenizer)
        except ValueError as error:
            raise DataError(f"{name} is neither byte-level nor in the manner of SentencePiece: {error}") from None
        self.size = len(self._bytes)
        self.byte_lengths: np.ndarray = np.array([len(piece) for piece in self._bytes], np.int32)

        added = tokenizer.get_added_tokens_decoder()
        self._special = special = {token.content: number for number, token in added.items() if token.special}
        named = [special[end] for end in END_NAMES if end in special]
        self.ends: tuple[int, ...] = tuple(dict.fromkeys([*(ends or ()), *named]))
        if not self.ends:
            raise DataError(
                f"{name} has no end-of-text token: its special tokens are {sorted(special) or 'none'}, "
                f"and one of {', '.join(END_NAMES)} is needed"
            )
        if not 0 <= max(self.ends) < self.size:
            raise DataError(f"{name} has {self.size} tokens, but a text is said to end with token {max(self.ends)}")
        self.end_of_text: int = self.ends[0]
        self.start_of_target: int = self.end_of_text if start_of_target is None else start_of_target
        self.mask: int | None = special.get(MASK)
        if not self._imported:
            end = tokenizer.id_to_token(self.end_of_text)
            tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
                single=f"{end} $A", special_tokens=[(end, self.end_of_text)]
            )

    @functools.cached_property
    def exact(self) -> bool:
        """Whether every text comes back as it was (tried on every kind of character)."""
        return all(self.decode(self.encode(text)) == text for text in (_PROBE, f" {_PROBE}"))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Tokens of several texts, on all cores."""
        return [item.ids for item in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def prompt(self, text: str) -> list[int]:
        """What a network reads for `text` as the beginning of a document; never nothing."""
        return self._tokenizer.encode(text, add_special_tokens=True).ids or [self.end_of_text]

    @functools.cached_property
    def beginning(self) -> list[int]:
        """What a text begins with: what `prompt` puts before it, or at least the end of the text before it."""
        probe = "a"
        prompt, text = self.prompt(probe), self.encode(probe)
        before = len(prompt) - len(text)
        return prompt[:before] if before > 0 and prompt[before:] == text else [self.end_of_text]

    def source(self, text: str) -> list[int]:
        """What a network reads of a text that it translates: with its end marked."""
        return self.prompt(text) if self._imported else [*self.encode(text), self.end_of_text]

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """What a network reads of a chat before it answers; each message has a `role` and a `content`.

        The names of special tokens that a message contains are text, as everywhere.

        Raises:
          ChatError: there is no template, or it does not take these messages.
        """
        if self.chat is None:
            raise ChatError("The checkpoint has no chat template.")
        return self.encode_named(self.chat.render(messages, self._special))

    def encode_named(self, text: str) -> list[int]:
        """Tokens of a text in which the names of special tokens stand for them, unless HIDES is in them."""
        return self._reads_names.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _reads_names(self) -> tokenizers.Tokenizer:
        """The tokenizer as the library has it: names of special tokens in a text stand for them, hidden ones do not."""
        tokenizer = tokenizers.Tokenizer.from_str(self.huggingface_json())
        unhide: list[normalizers.Normalizer] = [normalizers.Replace(HIDES, "")]
        steps = [*unhide, tokenizer.normalizer] if tokenizer.normalizer else unhide
        tokenizer.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
        return tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens; special ones have none, and bytes that are not UTF-8 become U+FFFD."""
        pieces = [number for number in ids if self.token_bytes(number)]
        return b"".join(self.token_bytes(n, first=i == 0) for i, n in enumerate(pieces)).decode(errors="replace")

    def token_bytes(self, id: int, first: bool = False) -> bytes:
        """The bytes that a token stands for; `first`: where no text is before it.

        There tokenizers in the manner of SentencePiece leave out the space that they put before every text.
        """
        piece = self._bytes[id] if id < self.size else b""
        spaces = len(piece) - len(piece.lstrip(b" ")) if first else 0
        return piece[min(spaces, self.first_spaces) :]

    def token_text(self, id: int) -> str:
        """The text of one token, or its name if it is special; bytes that are not UTF-8 by themselves as \\xNN."""
        return self.token_bytes(id).decode(errors="backslashreplace") or self._tokenizer.id_to_token(id) or ""

    def to_json(self) -> str:
        """The tokenizer as `from_json` reads it."""
        text = self.huggingface_json()
        if not self._imported:
            return text
        described = {ENDS: self.ends, START: self.start_of_target}
        if self.chat is not None:
            described[CHAT] = dataclasses.asdict(self.chat)
        return json.dumps({**described, **json.loads(text)}, ensure_ascii=False)

    def huggingface_json(self) -> str:
        """The tokenizer as Hugging Face's `tokenizer.json`."""
        return self._tokenizer.to_str()

    @staticmethod
    def from_json(
        text: str,
        name: str = "the tokenizer",
        ends: Sequence[int] | None = None,
        start_of_target: int | None = None,
        chat: ChatTemplate | None = None,
    ) -> Tokenizer:
        """Reads what `to_json` wrote, or a `tokenizer.json` of Hugging Face; the other arguments are the class's.

        Of a tokenizer that came with a checkpoint `to_json` writes the other arguments as well.

        Raises:
          DataError: it is not the description of a tokenizer that can be used here.
        """
        try:
            described: dict[str, Any] = json.loads(text) if f'"{ENDS}"' in text else {}
            ends, start_of_target = described.pop(ENDS, ends), described.pop(START, start_of_target)
            chat = ChatTemplate(**described.pop(CHAT)) if CHAT in described else chat
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps(described) if described else text)
        except Exception as error:  # `tokenizers` raises nothing more specific
            raise DataError(f"{name} is not a tokenizer.json: {error}") from None
        return Tokenizer(tokenizer, name, ends, start_of_target, chat)


# Every byte that UTF-8 has, and what tokenizers tend to lose.
_PROBE = "".join(map(chr, range(0x800))) + "".join(chr(0x1000 * i + 0x800) for i in range(16) if i != 13)
_PROBE += (
    "".join(chr(c) for c in (0x10000, 0x4E000, 0x80000, 0xC0000, 0x100000)) + f"  two  spaces \r\n{END_OF_TEXT}e\u0301 "
)


def make_tokenizer(config: schema.Tokenizer, corpus: Corpus, masked: bool = False) -> Tokenizer:
    """The tokenizer that the config asks for; it learns from the training text (the same text, the same tokens).

    Args:
      config: `bpe`, `bytes`, `words` (one token per word that the training text has, with the space before it; others
        are UNKNOWN), or a tokenizer.json.
      masked: ours get the token MASK.

    Raises:
      DataError: a given tokenizer.json is missing or cannot be used.
    """
    special = [END_OF_TEXT, MASK] if masked else [END_OF_TEXT]
    if config.source == "bpe":
        return Tokenizer(_trained(models.BPE(), trainers.BpeTrainer, corpus, config.vocab_size, special))
    if config.source == "words":
        model, special = models.WordLevel(unk_token=UNKNOWN), [*special, UNKNOWN]
        return Tokenizer(_trained(model, trainers.WordLevelTrainer, corpus, config.vocab_size, special))
    if config.source == "bytes":
        vocabulary = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
        return Tokenizer(_byte_level(models.BPE(vocab=vocabulary, merges=[]), special, split=False))
    path, name = Path(config.source), f"--tokenizer.source={config.source}"
    if not path.is_file():
        raise DataError(f"{name} is neither bpe, nor bytes, nor words, nor a tokenizer.json that exists")
    return _exact(path.read_text(encoding="utf-8"), name)


def _exact(text: str, name: str) -> Tokenizer:
    """A tokenizer that others made, for a network of ours: it has to give every text back exactly."""
    given = Tokenizer.from_json(text, name)._tokenizer
    # Normalizers (NFC in some models) would change the text.
    given.normalizer = None  # type: ignore[assignment]
    tokenizer = Tokenizer(given, name)
    if not tokenizer.exact:
        raise DataError(f"{name} does not give text back exactly; a byte-level tokenizer is needed")
    return tokenizer


def _byte_level(model: models.Model, special: list[str], split: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [pre_tokenizers.Split(Regex(PIECES), behavior="isolated")] if split else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*pieces, byte_level])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _trained(
    model: models.Model, trainer: Callable[..., trainers.Trainer], corpus: Corpus, size: int, special: list[str]
) -> tokenizers.Tokenizer:
    """Tokens learnt from the training text, the special ones first.

    Byte-level BPE (Sennrich et al. 2016, Radford et al. 2019), or the most frequent words.
    """
    tokenizer = _byte_level(model, special, split=True)
    alphabet = {"initial_alphabet": sorted(BYTE_CHARACTERS)} if isinstance(model, models.BPE) else {}
    options = {"vocab_size": size, "special_tokens": special, "show_progress": False, **alphabet}
    known = corpus.vocabulary
    sections = [Section(known, last=True)] if known else spread(corpus.train, MAX_TRAINING_BYTES)
    texts = (text for section in sections for text in (section.source, section.text) if text)
    tokenizer.train_from_iterator(texts, trainer(**options))
    return tokenizer
