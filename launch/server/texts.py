"""The engine's tokens as text that is certain to stay, piece by piece, each token with its place in the text."""

from __future__ import annotations

import codecs
import dataclasses
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Literal

from launch.server.engine_thread import Stream
from launch.server.jobs import Job, Prompt
from model.generate.engine import Token
from train.data.tokenizer import Tokenizer
from train.writing import Chosen, Row

Finish = Literal["stop", "length"]
LEAST = -9999.0  # Written for the logarithm of a probability of 0: JSON has no infinity.


@dataclasses.dataclass(frozen=True)
class Named:
    """A token that could stand at a place; `bytes` are its text's, none for a special token."""

    text: str
    bytes: bytes
    logprob: float


@dataclasses.dataclass(frozen=True)
class Placed:
    """A token of a text: `offset` characters stand before it; `logprob` is None where nothing does."""

    text: str
    bytes: bytes
    logprob: float | None
    top: tuple[Named, ...]
    offset: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """What is new in one of a request's texts."""

    number: int
    text: str
    tokens: list[Placed]
    finish: Finish | None


class Growing:
    """One text as it grows.

    A token is given out once the text is certain up to its beginning: what a stop string cuts off was never there.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt, job: Job) -> None:
        self.count = 0  # Tokens that were written.
        self.sum_logprob = 0.0
        self._tokenizer, self._job, self._prompt = tokenizer, job, prompt
        self._row = Row("", job.stops, begins=prompt.begins)
        self._echoed = len(prompt.text) if job.echo else 0
        self._shown = 0
        self._waiting: list[Placed] = []

    @property
    def mean_logprob(self) -> float:
        """By which the best texts are found."""
        return self.sum_logprob / max(self.count, 1)

    def begin(self, tokens: Sequence[Token]) -> tuple[str, list[Placed]]:
        """The prompt, if it is to be echoed, with its tokens if they are to be told."""
        if not self._job.echo:
            return "", []
        return self._prompt.text, list(self._placed(tokens)) if self._job.logprobs else []

    def _placed(self, tokens: Sequence[Token]) -> Iterator[Placed]:
        decoder, offset, begins = codecs.getincrementaldecoder("utf-8")("replace"), 0, True
        for token in tokens:
            text_bytes = self._tokenizer.token_bytes(token.id, first=begins)
            yield self._place(token, text_bytes, min(offset, len(self._prompt.text)))
            offset += len(decoder.decode(text_bytes))
            begins = begins and not text_bytes

    def add(self, tokens: Sequence[Token]) -> tuple[str, list[Placed], Finish | None]:
        """What is certain with some more tokens, and how the text ended if it did: what follows them is nothing."""
        text, finish, ended = "", None, False
        for token in tokens:
            before, text_bytes = len(self._row.sample.text), self._row.read(self._tokenizer, token.id)
            chosen = Chosen(token.id, "", token.logprob)
            text += self._row.add(chosen, text_bytes, token.finish == "end")
            self.count, self.sum_logprob = self.count + 1, self.sum_logprob + token.logprob
            if self._job.logprobs:
                self._waiting.append(self._place(token, text_bytes, self._echoed + before))
            if self._row.finished:
                finish, ended = "stop", token.finish == "end"
            elif token.finish:
                text, finish = text + self._row.close(), "length"
            if finish:
                break
        self._shown += len(text)
        # A text that no stop string cut is given out with its last token, which may have no characters of its own.
        whole = ended or finish == "length"
        upto = self._echoed + self._shown
        certain = [token for token in self._waiting if whole or token.offset < upto]
        self._waiting = self._waiting[len(certain) :]
        return text, certain, finish

    def _place(self, token: Token, text_bytes: bytes, offset: int) -> Placed:
        top = tuple(self._named(id, logprob) for id, logprob in token.top)
        logprob = None if math.isnan(token.logprob) else max(token.logprob, LEAST)
        return Placed(self._text(token.id, text_bytes), text_bytes, logprob, top, offset)

    def _named(self, id: int, logprob: float) -> Named:
        text_bytes = self._tokenizer.token_bytes(id)
        return Named(self._text(id, text_bytes), text_bytes, max(logprob, LEAST))

    def _text(self, id: int, text_bytes: bytes) -> str:
        """The text of a token at its place, or its name; bytes that are not UTF-8 by themselves as \\xNN."""
        return text_bytes.decode(errors="backslashreplace") or self._tokenizer.token_text(id)


class Answer:
    """All texts of a job, as the engine writes them."""

    def __init__(self, tokenizer: Tokenizer, job: Job, stream: Stream) -> None:
        self.texts = [Growing(tokenizer, job.prompt(number), job) for number in range(len(job.requests))]
        self.job = job
        self._stream = stream

    @property
    def prompt_tokens(self) -> int:
        """Tokens that were read, each prompt's once."""
        return sum(len(prompt.source or prompt.tokens) for prompt in self.job.prompts)

    @property
    def completion_tokens(self) -> int:
        """Tokens that were written so far."""
        return sum(text.count for text in self.texts)

    async def pieces(self) -> AsyncIterator[Piece]:
        """What becomes certain, until all texts have ended; each text's last piece says how it did."""
        begun: set[int] = set()
        async for number, event in self._stream:
            growing, text, tokens = self.texts[number], "", []
            if number not in begun:
                begun.add(number)
                text, tokens = growing.begin(event.prompt or ())
            more, placed, finish = growing.add(event.tokens) if event.tokens else ("", [], "length")
            if finish:
                self._stream.cancel(number)
            yield Piece(number, text + more, tokens + placed, finish)
