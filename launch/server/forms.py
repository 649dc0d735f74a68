"""The two forms of answers, /v1/completions and /v1/chat/completions, out of the same pieces of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pydantic

from launch.server import answers, asked
from launch.server.jobs import Job, chat_job, completion_job
from launch.server.serving import Serving
from launch.server.texts import Named, Piece, Placed


@dataclasses.dataclass(frozen=True)
class Head:
    """What each answer and event begins with."""

    id: str
    created: int
    model: str

    def to_dict(self) -> dict[str, Any]:
        """Its fields."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Form:
    """How an endpoint reads a request and tells its answer.

    Attributes:
      prefix: of the answers' ids.
      asks: the body of a request.
      job: what it asks the engine for; raises ApiError for what cannot be served.
      whole: the answer in one; each text as one piece, and whether tokens were asked for.
      begin: what a stream says of a text before its first piece, if anything.
      event: a piece in a stream; None is the last event, which has counts alone.
    """

    prefix: str
    asks: type[asked.Settings]
    job: Callable[[Serving, Any], Job]
    whole: Callable[[Head, Sequence[Piece], bool, answers.Usage], pydantic.BaseModel]
    begin: Callable[[Head, int], pydantic.BaseModel | None]
    event: Callable[[Head, Piece | None, bool, answers.Usage | None], pydantic.BaseModel]


def _completion_choice(piece: Piece, told: bool) -> answers.CompletionChoice:
    logprobs = None
    if told:
        logprobs = answers.CompletionLogprobs(
            tokens=[_legacy(token) for token in piece.tokens],
            token_logprobs=[token.logprob for token in piece.tokens],
            top_logprobs=[_likeliest(token) for token in piece.tokens],
            text_offset=[token.offset for token in piece.tokens],
        )
    return answers.CompletionChoice(index=piece.number, text=piece.text, logprobs=logprobs, finish_reason=piece.finish)


def _likeliest(token: Placed) -> dict[str, float] | None:
    """By text, the chosen one too; of tokens that look the same the likelier counts."""
    if token.logprob is None:
        return None
    by_text = {_legacy(other): other.logprob for other in reversed(token.top)}
    return dict(reversed(by_text.items())) | {_legacy(token): by_text.get(_legacy(token), token.logprob)}


def _legacy(token: Named | Placed) -> str:
    """Its text; as OpenAI's completions write it where it is not UTF-8 by itself: `bytes:\\xe5\\x92`."""
    try:
        token.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
    return token.text


def _completion(head: Head, pieces: Sequence[Piece], told: bool, usage: answers.Usage | None) -> answers.Completion:
    choices = [_completion_choice(piece, told) for piece in pieces]
    return answers.Completion(**head.to_dict(), choices=choices, usage=usage)


def _completion_event(head: Head, piece: Piece | None, told: bool, usage: answers.Usage | None) -> answers.Completion:
    return _completion(head, [] if piece is None else [piece], told, usage)


def _chat_logprobs(piece: Piece, told: bool) -> answers.ChatLogprobs | None:
    if not told:
        return None

    def fields(token: Named | Placed) -> dict[str, Any]:
        return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}

    return answers.ChatLogprobs(
        content=[
            answers.ChosenLogprob(
                **fields(token), top_logprobs=[answers.TokenLogprob(**fields(other)) for other in token.top]
            )
            for token in piece.tokens
        ]
    )


def _chat(head: Head, pieces: Sequence[Piece], told: bool, usage: answers.Usage) -> answers.Chat:
    choices = [
        answers.ChatChoice(
            index=piece.number,
            message=answers.AnswerMessage(content=piece.text),
            logprobs=_chat_logprobs(piece, told),
            finish_reason=piece.finish or "stop",
        )
        for piece in pieces
    ]
    return answers.Chat(**head.to_dict(), choices=choices, usage=usage)


def _chat_begin(head: Head, number: int) -> answers.ChatChunk:
    delta = answers.Delta(role="assistant", content="")
    choice = answers.ChatChunkChoice(index=number, delta=delta, logprobs=None, finish_reason=None)
    return answers.ChatChunk(**head.to_dict(), choices=[choice])


def _chat_event(head: Head, piece: Piece | None, told: bool, usage: answers.Usage | None) -> answers.ChatChunk:
    choices = []
    if piece is not None:
        choices = [
            answers.ChatChunkChoice(
                index=piece.number,
                delta=answers.Delta(content=piece.text or None),
                logprobs=_chat_logprobs(piece, told),
                finish_reason=piece.finish,
            )
        ]
    return answers.ChatChunk(**head.to_dict(), choices=choices, usage=usage)


COMPLETIONS = Form(
    "cmpl", asked.CompletionRequest, completion_job, _completion, lambda head, number: None, _completion_event
)
CHAT = Form("chatcmpl", asked.ChatRequest, chat_job, _chat, _chat_begin, _chat_event)
