"""The web application: its routes, who may use them, and how errors are told.

`make_app(serving, routes=[...])` takes routes of other parts (a page, its data); they find what is served as
`request.app.state.serving`, and stand behind the same key and the same check of the host.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launch.server import errors
from launch.server.answers import Health, Model, Models
from launch.server.errors import ApiError
from launch.server.metrics import Metrics
from launch.server.openapi import document
from launch.server.routes import chat_completions, completions
from launch.server.serving import Serving
from launch.server.tokens import detokenize, tokenize, tokenizer_info

OPEN_PATHS = ("/health",)  # No key is needed: who watches over a server asks this.


def make_app(
    serving: Serving, *, routes: Sequence[BaseRoute] = (), key: str | None = None, hosts: Sequence[str] | None = None
) -> Starlette:
    """The application.

    Args:
      serving: what is served.
      routes: of other parts, before ours.
      key: what clients must send as `Authorization: Bearer KEY`; None asks for none.
      hosts: names that the server may be called by; None: any. A page elsewhere on the web, whose name was made to
        point at this machine, is not among them.
    """
    ours = [
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
        Route("/v1/models", models),
        Route("/v1/models/{model:path}", model),
        Route("/tokenizer_info", tokenizer_info),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    ]
    middleware = [Middleware(Counted, metrics=serving.metrics)]
    if hosts is not None:
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False))
    if key is not None:
        middleware.append(Middleware(Locked, key=key))
    handlers = {
        ApiError: errors.on_api_error, HTTPException: errors.on_http_error, Exception: errors.on_failure
    }  # fmt: skip
    app = Starlette(routes=[*routes, *ours], middleware=middleware, exception_handlers=handlers)
    app.state.serving, app.state.locked = serving, key is not None
    return app


async def health(request: Request) -> Response:
    """Whether answers can be expected."""
    engine = request.app.state.serving.engine
    status = "failed" if engine.failure else "stopping" if engine.stopping else "ok"
    return JSONResponse(Health(status=status).model_dump(), 200 if status == "ok" else 503)


async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(request.app.state.serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(request: Request) -> Response:
    """What can be asked here, for programs."""
    return JSONResponse(document(request.app.state.locked))


async def models(request: Request) -> Response:
    """The models that are served: one."""
    return JSONResponse(Models(data=[described(request.app.state.serving)]).model_dump())


async def model(request: Request) -> Response:
    """One model."""
    serving = request.app.state.serving
    serving.check_name(request.path_params["model"])
    return JSONResponse(described(serving).model_dump())


def described(serving: Serving) -> Model:
    """The model as OpenAI describes one."""
    return Model(id=serving.name, created=serving.created)


class Locked:
    """Lets nobody in without the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what has the key, or answer 401."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                refused = ApiError(
                    401, "The key is missing or wrong: send it as `Authorization: Bearer KEY`.",
                    code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
                await refused.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Counted:
    """Counts the answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and count what comes back."""

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route's path, not the request's: whoever tries many paths would fill the memory.
                route = scope.get("route")
                self._metrics.requests.labels(getattr(route, "path", "other"), message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counting if scope["type"] == "http" else send)
