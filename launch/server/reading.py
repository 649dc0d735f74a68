"""A request's body: JSON, not too long, not too slow, and of the right form."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import pydantic
from starlette.requests import ClientDisconnect, Request

from launch.server import errors
from launch.server.errors import ApiError

HUNG_UP = 499  # nginx's number for a client that went away; HTTP has none.
BODY_SECONDS = 30  # That a client may take to send its request.
Form = TypeVar("Form", bound=pydantic.BaseModel)


async def parsed(request: Request, form: type[Form], max_body: int) -> Form:
    """The body, of at most `max_body` bytes, as an object; raises ApiError."""
    body = await _read(request, max_body)
    try:
        return form.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise errors.malformed(error, body) from error


async def _read(request: Request, longest: int) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # A page elsewhere on the web could send other types without asking this server first.
        raise ApiError(415, "The body must be JSON: send `Content-Type: application/json`.")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > longest:
                    raise ApiError(413, f"The body is longer than the {longest} bytes that are read here.")
    except ClientDisconnect:
        raise ApiError(HUNG_UP, "The client went away.") from None
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_SECONDS} s.") from None
    return bytes(body)
