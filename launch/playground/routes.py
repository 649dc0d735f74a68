"""The playground's addresses: the page at /, its files and what it asks for under /playground/.

Numbers travel as little-endian binary, and only those that are looked at: as JSON, all weights of thirty layers of nine
heads at 256 tokens would be hundreds of megabytes.
"""

from __future__ import annotations

import pathlib
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import numpy as np
import pydantic
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from configs.derived import translates
from configs.schema import ConfigError
from launch.playground.models import Models, described, vocabulary
from launch.playground.reading import Reader, Text, thumbnails
from launch.server import errors
from launch.server.errors import ApiError
from launch.server.reading import parsed
from train.checkpoint import CheckpointError

PAGE = pathlib.Path(__file__).parent / "page"
HEADERS = {
    # The browser holds us to it: nothing is loaded from elsewhere, nothing is told elsewhere.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
MOST_BYTES = 2**20  # Of a question.
Kind = Literal["self", "cross", "encoder"]


class Encode(pydantic.BaseModel, extra="forbid"):
    """A text to be cut into tokens."""

    model: str
    text: str


class Read(pydantic.BaseModel, extra="forbid"):
    """Tokens to read: what comes after them, and how likely each was."""

    model: str
    ids: list[int]
    source: str | None = None
    off: list[tuple[Kind, int, int]] = []


class Grid(Read):
    """All heads of one kind of attention, small."""

    kind: Kind = "self"


class Head(Grid):
    """One head."""

    layer: int
    head: int


class Files(StaticFiles):
    """The page's files, with its headers."""

    def file_response(self, *args: Any, **settings: Any) -> Response:
        """As the base class, plus HEADERS."""
        response = super().file_response(*args, **settings)
        response.headers.update(HEADERS)
        return response


def routes(models: Models) -> list[BaseRoute]:
    """The addresses, to be put into an application."""

    async def page(_: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    def show_models(_: None) -> Response:
        shown = [{"model": choice.checkpoint, "title": choice.title} for choice in models.choices.values()]
        return JSONResponse({"models": shown, "first": models.first})

    def show_model(checkpoint: str) -> Response:
        return JSONResponse(described(models.reader(checkpoint)))

    def show_vocabulary(checkpoint: str) -> Response:
        reader = models.reader(checkpoint)
        return _binary(vocabulary(reader.tokenizer, reader.config.tokenizer.vocab_size))

    def encode(asked: Encode) -> Response:
        reader = models.reader(asked.model)
        tokenizer = reader.tokenizer
        if translates(reader.config):
            return JSONResponse({"ids": [tokenizer.start_of_target, *tokenizer.encode(asked.text)]})
        return JSONResponse({"ids": tokenizer.prompt(asked.text)})

    def read(asked: Read) -> Response:
        reading = models.reader(asked.model).read(_text(models.reader(asked.model), asked))
        return _binary(
            np.concatenate([reading.logits_V, reading.logprobs_T, reading.entropies_T]).astype("<f4").tobytes()
        )

    def grid(asked: Grid) -> Response:
        reader = models.reader(asked.model)
        reader.check_head(asked.kind, 0, 0)
        pictures_LNPQ = thumbnails(reader.read(_text(reader, asked)).weights[asked.kind])
        return _binary(np.array(pictures_LNPQ.shape, "<u4").tobytes() + pictures_LNPQ.tobytes())

    def head(asked: Head) -> Response:
        reader = models.reader(asked.model)
        reader.check_head(asked.kind, asked.layer, asked.head)
        weights_TS = reader.read(_text(reader, asked)).weights[asked.kind][asked.layer, asked.head]
        return _binary(np.array(weights_TS.shape, "<u4").tobytes() + weights_TS.astype("<f4").tobytes())

    def source(asked: Encode) -> Response:
        reader = models.reader(asked.model)
        return JSONResponse({"ids": reader.tokenizer.source(asked.text)})

    return [
        Route("/", page),
        Route("/playground/api/models", _answer(lambda request: None, show_models)),
        Route("/playground/api/model", _answer(_model, show_model)),
        Route("/playground/api/vocabulary", _answer(_model, show_vocabulary)),
        *(
            Route(f"/playground/api/{name}", _answer(_body(kind), handle), methods=["POST"])
            for name, kind, handle in (
                ("encode", Encode, encode),
                ("source", Encode, source),
                ("read", Read, read),
                ("grid", Grid, grid),
                ("head", Head, head),
            )
        ),
        Mount("/playground", Files(directory=PAGE)),
    ]


def _text(reader: Reader, asked: Read) -> Text:
    source = None if asked.source is None else tuple(reader.tokenizer.source(asked.source))
    return Text(tuple(asked.ids), source, frozenset(asked.off))


def _model(request: Request) -> str:
    return request.query_params.get("model", "")


def _body(form: type[pydantic.BaseModel]) -> Callable[[Request], Awaitable[Any]]:
    return lambda request: parsed(request, form, MOST_BYTES)


def _answer(parse: Callable[[Request], Any], handle: Callable[[Any], Response]) -> Callable[[Request], Awaitable[Any]]:
    """Parse a question, answer it on a thread (the network may take a while), say in JSON what was wrong with it."""

    async def endpoint(request: Request) -> Response:
        try:
            asked = parse(request)
            response = await run_in_threadpool(handle, await asked if isinstance(asked, Awaitable) else asked)
        except ApiError as error:
            response = error.response()
        except ConfigError as error:
            response = errors.refusal(error).response()
        except CheckpointError as error:
            response = ApiError(400, str(error), param="model").response()
        response.headers.update(HEADERS)
        return response

    return endpoint


def _binary(content: bytes) -> Response:
    return Response(content, media_type="application/octet-stream")
