"""POST /v1/completions and /v1/chat/completions: from the body to the answer, in one or as a stream."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import pydantic
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from configs.schema import ConfigError
from launch.server import errors
from launch.server.answers import Usage
from launch.server.asked import Settings
from launch.server.engine_thread import OverloadError, StoppingError
from launch.server.errors import ApiError
from launch.server.forms import CHAT, COMPLETIONS, Form, Head
from launch.server.jobs import Job
from launch.server.reading import HUNG_UP, parsed
from launch.server.serving import Serving
from launch.server.texts import Answer, Piece


async def completions(request: Request) -> Response:
    """Continue texts."""
    return await _answer(request, COMPLETIONS)


async def chat_completions(request: Request) -> Response:
    """Answer messages."""
    return await _answer(request, CHAT)


async def _answer(request: Request, form: Form) -> Response:
    serving: Serving = request.app.state.serving
    asked = await parsed(request, form.asks, serving.limits.max_body)
    try:
        # In a thread: the tokens of a long prompt take a while, and others are waiting.
        job = await asyncio.to_thread(form.job, serving, asked)
    except ConfigError as error:
        raise errors.refusal(error) from error
    exchange = _Exchange(serving, form, asked, job)
    if not asked.stream:
        return await _unless_hung_up(request, exchange.whole())
    events = exchange.events()
    await anext(events)  # What the engine refuses is refused here, as long as the status can say so.
    return _EventStream(events)


async def _unless_hung_up(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The result of some work, which is given up if the client goes away."""

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(hang_up())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return Response(status_code=HUNG_UP)  # For the metrics; nobody reads it.
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


class _EventStream(StreamingResponse):
    """Server-sent events; however it ends, so does their source, and frees what it holds."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


class _Exchange:
    """One request on its way through the engine."""

    def __init__(self, serving: Serving, form: Form, asked: Settings, job: Job) -> None:
        self._serving, self._form, self._asked, self._job = serving, form, asked, job
        self._head = Head(f"{form.prefix}-{uuid.uuid4().hex}", int(time.time()), serving.name)
        self._since = time.monotonic()
        self._answer: Answer | None = None  # Once the engine has taken the request in.

    async def _pieces(self) -> AsyncGenerator[Piece | None, None]:
        """None as soon as the engine has taken the request in, then what is written; raises ApiError."""
        serving, metrics, begun = self._serving, self._serving.metrics, False
        try:
            async with serving.engine.open(self._job.requests, serving.limits.seconds) as stream:
                self._answer = answer = Answer(serving.tokenizer, self._job, stream)
                try:
                    yield None
                    async for piece in answer.pieces():
                        if not begun:
                            begun = True
                            metrics.first_token.observe(time.monotonic() - self._since)
                        yield piece
                finally:
                    metrics.prompt_tokens.inc(answer.prompt_tokens)
                    metrics.completion_tokens.inc(answer.completion_tokens)
            metrics.duration.observe(time.monotonic() - self._since)
        except OverloadError as error:
            raise ApiError(429, str(error), headers={"Retry-After": str(error.retry_after)}) from error
        except StoppingError as error:
            raise ApiError(503, str(error)) from error
        except TimeoutError as error:
            raise ApiError(
                408, f"The answer took longer than {serving.limits.seconds:g} s: ask for fewer tokens.",
                headers={"X-Should-Retry": "false"},
            ) from error  # fmt: skip
        except ConfigError as error:
            raise errors.refusal(error) from error

    async def whole(self) -> Response:
        """The answer in one."""
        texts = [Piece(number, "", [], None) for number in range(len(self._job.requests))]
        async for piece in self._pieces():
            if piece is not None:
                so_far = texts[piece.number]
                texts[piece.number] = dataclasses.replace(
                    piece, text=so_far.text + piece.text, tokens=so_far.tokens + piece.tokens
                )
        assert self._answer is not None
        best = self._best(texts, self._answer)
        result = self._form.whole(self._head, best, self._job.logprobs, _usage(self._answer))
        return Response(result.model_dump_json(), media_type="application/json")

    def _best(self, texts: list[Piece], answer: Answer) -> list[Piece]:
        """Of each prompt's texts the likeliest, as many as are to be kept."""
        job, best = self._job, []
        if job.kept == job.written:
            return texts
        for first in range(0, len(texts), job.written):
            of_prompt = sorted(texts[first : first + job.written], key=lambda t: -answer.texts[t.number].mean_logprob)
            best += of_prompt[: job.kept]
        return [dataclasses.replace(text, number=number) for number, text in enumerate(best)]

    async def events(self) -> AsyncGenerator[str, None]:
        """The answer as server-sent events; the first item is empty, and there once the engine has taken it in."""
        form, head, told = self._form, self._head, self._job.logprobs
        try:
            async for piece in self._pieces():
                if piece is None:
                    yield ""
                    for number in range(len(self._job.requests)):
                        if begin := form.begin(head, number):
                            yield _event(begin)
                elif piece.text or piece.tokens or piece.finish:
                    yield _event(form.event(head, piece, told, None))
            if self._asked.with_usage:
                assert self._answer is not None
                yield _event(form.event(head, None, told, _usage(self._answer)))
            yield "data: [DONE]\n\n"
        except ApiError as error:
            if self._answer is None:
                raise
            yield f"data: {json.dumps(error.to_dict())}\n\n"


def _event(value: pydantic.BaseModel) -> str:
    return f"data: {value.model_dump_json()}\n\n"


def _usage(answer: Answer) -> Usage:
    read, written = answer.prompt_tokens, answer.completion_tokens
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
