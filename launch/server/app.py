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
from launch.server.errors import ApiError
from launch.server.metrics import Metrics
from launch.server.serving import Serving

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
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
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
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
    app.state.serving = serving
    return app


async def health(request: Request) -> Response:
    """Whether answers can be expected."""
    failed = request.app.state.serving.engine.failure
    return JSONResponse({"status": "failed" if failed else "ok"}, 503 if failed else 200)


async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(request.app.state.serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def models(request: Request) -> Response:
    """The models that are served: one."""
    return JSONResponse({"object": "list", "data": [described(request.app.state.serving)]})


async def model(request: Request) -> Response:
    """One model."""
    serving = request.app.state.serving
    check_model(serving, request.path_params["name"])
    return JSONResponse(described(serving))


def described(serving: Serving) -> dict[str, str | int]:
    """The model as OpenAI describes one."""
    return {"id": serving.name, "object": "model", "created": serving.created, "owned_by": "seq2see"}


def check_model(serving: Serving, name: str | None) -> None:
    """Raises ApiError if a request asks for another model than the one that is served."""
    if name is not None and name != serving.name:
        raise ApiError(
            404, f"model: {name!r} is not served here, but {serving.name!r} is.", param="model", code="model_not_found"
        )


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
