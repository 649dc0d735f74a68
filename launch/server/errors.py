"""What goes wrong, told as OpenAI's clients expect it: a status, and {"error": {message, type, param, code}}."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pydantic
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from configs.schema import ConfigError

# What flags of ours are called in requests, where it is not the same.
OTHERWISE = {"bias": "logit_bias", "regex": "guided_regex", "json_schema": "response_format"}
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


def wrong(param: str, why: str, code: str | None = None) -> ApiError:
    """What is wrong with a field."""
    return ApiError(400, f"{param}: {why}", param=param, code=code)


def refusal(error: ConfigError) -> ApiError:
    """What cannot be run, as the answer; our messages begin with the flag, whose name is the field's."""
    named = re.match(r"--([\w.]+)=", str(error))
    if named is None:
        return ApiError(400, str(error))
    field = OTHERWISE.get(named[1], named[1])
    return ApiError(400, f"{field}={str(error)[named.end() :]}", param=field)


def malformed(error: pydantic.ValidationError, body: bytes) -> ApiError:
    """The first field of a request that is wrong, and how."""
    found = error.errors(include_url=False, include_context=False)
    if found[0]["type"] == "json_invalid":
        return ApiError(400, f"The body is not JSON: {found[0]['msg'].removeprefix('Invalid JSON: ')}.")
    values = json.loads(body)
    placed = [(_place(one["loc"], values), one) for one in found]
    # Of a field that may be of several kinds there is an error for each; the value comes nearest to one of them.
    of_first = [(place, one) for place, one in placed if place[:1] == placed[0][0][:1]]
    nearest = max((place for place, _ in of_first), key=len)
    why = list(dict.fromkeys(one["msg"] for place, one in of_first if place == nearest))
    param = ".".join(map(str, nearest))
    if any(one["type"] == "extra_forbidden" for place, one in of_first if place == nearest):
        return wrong(param, "it is not a field that is known here.", "unknown_parameter")
    why = ", or ".join([why[0], *(more[:1].lower() + more[1:] for more in why[1:])])
    return wrong(param, f"{why}.") if param else ApiError(400, f"The body: {why}.")


def _place(location: Sequence[str | int], values: Any) -> tuple[str | int, ...]:
    """Where in a request an error is; the location has names of kinds of values in it too."""
    place: list[str | int] = []
    for part in location:
        if isinstance(values, dict) and (isinstance(part, str) and (part in values or part == location[-1])):
            place, values = [*place, part], values.get(part)
        elif isinstance(values, list) and isinstance(part, int):
            place, values = [*place, part], values[part]
    return tuple(place)


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
