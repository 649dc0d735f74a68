"""What answers say: OpenAI's protocol, from which the OpenAPI document is made too."""

from __future__ import annotations

from typing import Any, Literal

import pydantic


class Tokens(pydantic.BaseModel):
    """The tokens of a text."""

    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(pydantic.BaseModel):
    """The text of tokens."""

    prompt: str


class TokenizerInfo(pydantic.BaseModel):
    """What a client needs to know of the tokenizer; tokens by their names."""

    eos_token: str
    bos_token: str
    chat_template: str | None


class Usage(pydantic.BaseModel):
    """Counts of tokens; those that end a text or belong to a stop string count too."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(pydantic.BaseModel):
    """One entry in each list for every token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(pydantic.BaseModel):
    """One text, or in a stream the next piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(pydantic.BaseModel):
    """The answer of /v1/completions, and each event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TokenLogprob(pydantic.BaseModel):
    """A token that could stand at a place."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    """The token that stands there, and the likeliest ones."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(pydantic.BaseModel):
    """The tokens of an answer."""

    content: list[ChosenLogprob]


class AnswerMessage(pydantic.BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(pydantic.BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class Chat(pydantic.BaseModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(pydantic.BaseModel):
    """The next piece of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @pydantic.model_serializer(mode="wrap")
    def _given(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A field that says nothing new is left out."""
        return {name: value for name, value in dump(self).items() if value is not None}


class ChatChunkChoice(pydantic.BaseModel):
    """The next piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatChunk(pydantic.BaseModel):
    """An event of the stream of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class Model(pydantic.BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "seq2see"


class Models(pydantic.BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(pydantic.BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(pydantic.BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


class Health(pydantic.BaseModel):
    """The answer of /health."""

    status: Literal["ok", "stopping", "failed"]
