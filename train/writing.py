"""Text written by a network, with the probabilities behind each of its tokens."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.generate import Sampling, generate
from train.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Token:
    """A token that could stand at a place, with the natural logarithm of its probability."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Chosen(Token):
    """The token that was chosen, and the likeliest ones at its place, best first."""

    top: tuple[Token, ...] = ()


@dataclass
class Sample:
    """What was written after a prompt; `text` ends before a stop string, and leaves out a character begun last."""

    prompt: str
    text: str = ""
    tokens: list[Chosen] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The sample as `--json` gives it."""
        tokens = [
            {
                "id": token.id,
                "text": token.text,
                "logprob": token.logprob,
                "top": [{"id": other.id, "text": other.text, "logprob": other.logprob} for other in token.top],
            }
            for token in self.tokens
        ]
        return {"prompt": self.prompt, "text": self.text, "tokens": tokens}


class _Row:
    """One sample as it grows: bytes to text, and text up to a stop string."""

    def __init__(self, prompt: str, stop: Sequence[str]) -> None:
        self.sample = Sample(prompt)
        self.stop = [string for string in stop if string]
        self.finished = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown = 0

    def add(self, token: Chosen, text_bytes: bytes, is_end: bool) -> str:
        """Take one more token in; return the text that is now certain to stay."""
        self.sample.tokens.append(token)
        self.sample.text += self._decoder.decode(text_bytes)
        found = [at for at in (self.sample.text.find(string) for string in self.stop) if at >= 0]
        if found:
            self.sample.text = self.sample.text[: min(found)]
        self.finished = is_end or bool(found)
        return self._news(len(self.sample.text) if self.finished else len(self.sample.text) - self._held_back())

    def close(self) -> str:
        """No more tokens will come; return the text that was held back."""
        self.finished = True
        return self._news(len(self.sample.text))

    def _news(self, upto: int) -> str:
        news = self.sample.text[self._shown : upto]
        self._shown = max(self._shown, upto)
        return news

    def _held_back(self) -> int:
        """Length of the longest end of the text that a stop string could begin with."""
        longest = max((len(string) for string in self.stop), default=1) - 1
        for length in range(min(longest, len(self.sample.text)), 0, -1):
            if any(string.startswith(self.sample.text[-length:]) for string in self.stop):
                return length
        return 0


def write(
    module: Any,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    max_tokens: int,
    seeds: Sequence[int],
    stop: Sequence[str] = (),
    top: int = 0,
    on_token: Callable[[int, Chosen | None, str], None] | None = None,
) -> list[Sample]:
    """Continue each prompt until the text ends, a stop string appears, or `max_tokens` are written.

    Args:
      prompts: texts; each is read as the beginning of a document.
      seeds: one per prompt; a sample depends on its own prompt and seed only.
      top: how many of the likeliest tokens to keep at each place.
      on_token: called with (row, token, text that became certain) as soon as a token is there; with None for a token
        where a text ends with more than its last token brought.
    """
    end = tokenizer.end_of_text
    rows = [_Row(prompt, stop) for prompt in prompts]
    tell = on_token or (lambda row, token, text: None)
    prompt_ids = [[end, *tokenizer.encode(prompt)] for prompt in prompts]
    for chunk in generate(module, params, prompt_ids, sampling, max_tokens=max_tokens, seeds=seeds, end=end, top=top):
        for index, row in enumerate(rows):
            for place in range(chunk.tokens_BC.shape[1]):
                if row.finished:
                    break
                likeliest = zip(chunk.top_tokens_BCK[index, place], chunk.top_logprobs_BCK[index, place], strict=True)
                chosen = Chosen(
                    *_named(tokenizer, chunk.tokens_BC[index, place], chunk.logprobs_BC[index, place]),
                    top=tuple(Token(*_named(tokenizer, id, logprob)) for id, logprob in likeliest),
                )
                tell(index, chosen, row.add(chosen, tokenizer.token_bytes(chosen.id), chosen.id == end))
        if all(row.finished for row in rows):
            break
    for index, row in enumerate(rows):
        rest = row.close()
        if rest:
            tell(index, None, rest)
    return [row.sample for row in rows]


def _named(tokenizer: Tokenizer, id: np.integer, logprob: np.floating) -> tuple[int, str, float]:
    return int(id), tokenizer.token_text(int(id)), float(logprob)


def harmless(text: str) -> str:
    """Text without the control characters that would move a terminal's cursor or change its state, as escapes."""
    kept = (c if c in "\n\t" or unicodedata.category(c) != "Cc" else c.encode("unicode_escape").decode() for c in text)
    return "".join(kept)
