"""A text as people read it: tokens that are only parts of a character stand together.

Byte-level tokenizers cut rare characters into bytes: SmolLM2 reads the nine characters of 我今天早上喝了一杯 as sixteen
tokens. Shapes: T tokens, P pieces.
"""

from __future__ import annotations

import bisect
import codecs
import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from configs.schema import ConfigError

if TYPE_CHECKING:
    from train.data.tokenizer import Tokenizer

_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\r\t"},
    **dict.fromkeys([*range(0x80, 0xA0), 0xFFFE, 0xFFFF], 0xFFFD),
    0x7F: 0x2421,
}
_SIGNS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}


def visible(token: str) -> str:
    """`token` with its white space shown as signs (␣ ↵ ␍ ⇥) and an empty one as ∅."""
    return printable("".join(_SIGNS.get(character, character) for character in token)) or "∅"


def printable(text: str) -> str:
    """Control characters as their pictures: they have no shape of their own, and XML, and so SVG, refuses them."""
    return text.translate(_PICTURES)


def ends_at(word: str, texts: Sequence[str]) -> int:
    """Which of the pieces `texts` of a text is the last one of `word`, where that stands for the last time.

    Whole words are preferred; where there is none, parts of words are found.

    Raises:
      ConfigError: it is not there; the message lists the words.
    """
    text = "".join(texts)
    found = [*re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text)] or [*re.finditer(re.escape(word), text)]
    if not word.strip() or not found:
        words = list(dict.fromkeys(re.findall(r"\w+(?:['’]\w+)*", text)))
        raise ConfigError(f"--word={word} is not in the text; its words are {', '.join(words)}.")
    return bisect.bisect_left(list(itertools.accumulate(map(len, texts))), found[-1].end())


def is_wide(character: str) -> bool:
    """Whether a character takes two columns, as Chinese ones do."""
    return unicodedata.east_asian_width(character) in "WF"


@dataclass(frozen=True)
class Pieces:
    """The tokens of a text, and the shortest pieces of it that are whole characters."""

    tokens: Sequence[str]  # T; bytes that are no character as \xNN
    texts: Sequence[str]  # P
    starts: Sequence[int]  # the first token of each of the P pieces

    @classmethod
    def of(cls, tokenizer: Tokenizer, ids: Sequence[int]) -> Pieces:
        """The pieces of a text that was read as `ids`."""
        tokens, texts, starts = [tokenizer.token_text(id) for id in ids], [], [0]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = ""
        for at, id in enumerate(ids):
            read = tokenizer.token_bytes(id)
            text += decoder.decode(read, final=not read or at + 1 == len(ids))
            text += "" if read else tokens[at]
            if decoder.getstate()[0]:
                continue
            texts.append(text)
            starts.append(at + 1)
            text = ""
        return cls(tokens, texts, starts[:-1])

    @classmethod
    def whole(cls, tokens: Sequence[str]) -> Pieces:
        """Tokens each of which stands by itself."""
        return cls(tokens, tokens, range(len(tokens)))

    @property
    def split(self) -> bool:
        """Whether a character is cut."""
        return len(self.texts) < len(self.tokens)

    def last(self, piece: int) -> int:
        """The last token of a piece."""
        return [*self.starts, len(self.tokens)][piece + 1] - 1

    def counts(self) -> np.ndarray:
        """How many tokens make up each piece, [P]."""
        return np.diff([*self.starts, len(self.tokens)])


def merged(weights_XTS: np.ndarray, queries: Pieces, keys: Pieces) -> np.ndarray:
    """Attention between pieces, [...,P,Q] float32: sums over the tokens of a piece that is read, means over those of
    one that reads, so that rows still sum to 1.

    Clark et al. 2019, "What Does BERT Look At?", section 4.1.
    """
    summed_XTQ = np.add.reduceat(weights_XTS, np.asarray(keys.starts), axis=-1, dtype=np.float32)
    return np.add.reduceat(summed_XTQ, np.asarray(queries.starts), axis=-2) / queries.counts()[:, None].astype(
        "float32"
    )
