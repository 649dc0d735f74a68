"""What goes wrong, told as OpenAI's clients expect it: a status, and {"error": {message, type, param, code}}."""

from __future__ import annotations

import re
from typing import Any

import pydantic
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from configs.schema import ConfigError

TYPES = {401: "authentication_error", 429: "rate_limit_error"}  # Of other statuses, the two below.


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
      status: of HTTP.
      param: the field of the request that is wrong, `messages.0.content`, or None.
      code: for programs, `model_not_found`, or None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer, and of the event in a stream that breaks off."""
        kind = TYPES.get(self.status) or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.to_dict(), self.status, self.headers)


def refusal(error: ConfigError) -> ApiError:
    """What cannot be run, as the answer; our messages begin with the flag, whose name is the field's."""
    named = re.match(r"--([\w.]+)=", str(error))
    return ApiError(400, str(error).removeprefix("--"), param=named[1] if named else None)


def malformed(error: pydantic.ValidationError) -> ApiError:
    """The first thing that is wrong with a request, with the field's name."""
    first = min(error.errors(include_url=False, include_context=False), key=lambda found: len(found["loc"]))
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}.")
    # A field that takes several kinds of values adds the kind to the place.
    param = ".".join(str(part) for part in first["loc"] if not re.search(r"[\[(A-Z]|^(str|int|float)$", str(part)))
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param} is not a field that is known here.", param=param, code="unknown_parameter")
    return ApiError(400, f"{param or 'The body'}: {first['msg']}.", param=param or None)


async def on_api_error(_: Request, error: Exception) -> JSONResponse:
    """The handler of ApiError."""
    assert isinstance(error, ApiError)
    return error.response()


async def on_http_error(_: Request, error: Exception) -> JSONResponse:
    """The handler of what the framework refuses: no such page, no such method."""
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, error.detail, headers=dict(error.headers or {})).response()


async def on_failure(_: Request, error: Exception) -> JSONResponse:
    """The handler of mistakes of ours; what happened is in the log, and nobody else's affair."""
    return ApiError(500, "The server made a mistake; its log says which.").response()
