"""The description of the server, as OpenAPI 3.1 has it, made of the classes that read requests and write answers."""

from __future__ import annotations

import functools
from typing import Any

from pydantic.json_schema import models_json_schema

from launch.server import answers, asked

REFUSALS = {
    400: "A field is wrong; the error names it.",
    401: "The key is missing or wrong.",
    404: "There is no such model.",
    408: "It took too long.",
    413: "The body is too long.",
    415: "The body is not JSON.",
    429: "Too much is waiting; Retry-After says when to come again.",
    503: "The server is being stopped.",
}
REQUESTS = (
    asked.CompletionRequest, asked.ChatRequest, asked.TokenizeRequest, asked.DetokenizeRequest
)  # fmt: skip
ANSWERS = (
    answers.Completion, answers.Chat, answers.ChatChunk, answers.Model, answers.Models, answers.ErrorAnswer,
    answers.Health, answers.Tokens, answers.Detokenized, answers.TokenizerInfo,
)  # fmt: skip


@functools.cache
def document(locked: bool) -> dict[str, Any]:
    """The description; `locked`: a key is asked for."""
    _, schemas = models_json_schema(
        [*((model, "validation") for model in REQUESTS), *((model, "serialization") for model in ANSWERS)],
        ref_template="#/components/schemas/{model}",
    )
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    paths = {
        "/v1/completions": {"post": _streams(_asks("Continue texts.", "CompletionRequest", "Completion"))},
        "/v1/chat/completions": {"post": _streams(_asks("Answer messages.", "ChatRequest", "Chat"))},
        "/tokenize": {"post": _asks("The tokens of a text.", "TokenizeRequest", "Tokens")},
        "/detokenize": {"post": _asks("The text of tokens.", "DetokenizeRequest", "Detokenized")},
        "/tokenizer_info": {"get": _reads("What a client needs to know of the tokenizer.", "TokenizerInfo")},
        "/v1/models": {"get": _reads("The models that are served.", "Models")},
        "/v1/models/{model}": {"get": _reads("One model.", "Model", 404) | {"parameters": [model]}},
        "/health": {"get": _reads("Whether answers can be expected.", "Health") | {"security": []}},
        "/metrics": {
            "get": {
                "summary": "For Prometheus.",
                "responses": {"200": {"description": "Metrics.", "content": {"text/plain": {}}}, **_refusals(401)},
            }
        },
        "/openapi.json": {"get": _reads("This document.", None)},
    }
    paths["/health"]["get"]["responses"]["503"] = _answer("It is being stopped, or has failed.", "Health")
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "seq2see", "version": "1", "description": "OpenAI's protocol for one checkpoint."},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }
    if locked:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
    return described


def _schema(name: str | None) -> dict[str, Any]:
    return {"schema": {"type": "object"} if name is None else {"$ref": f"#/components/schemas/{name}"}}


def _answer(description: str, name: str | None) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": _schema(name)}}


def _refusals(*statuses: int) -> dict[str, Any]:
    return {str(status): _answer(REFUSALS[status], "ErrorAnswer") for status in statuses}


def _reads(summary: str, name: str | None, *statuses: int) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": _answer(summary, name), **_refusals(401, *statuses)}}


def _asks(summary: str, request: str, answer: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": _schema(request)}},
        "responses": {"200": _answer("The answer.", answer), **_refusals(*REFUSALS)},
    }


def _streams(asks: dict[str, Any]) -> dict[str, Any]:
    """The same, whose answer may come as a stream."""
    asks["responses"]["200"]["description"] = "The texts; with `stream`, events that bring them piece by piece."
    asks["responses"]["200"]["content"]["text/event-stream"] = {}
    return asks
