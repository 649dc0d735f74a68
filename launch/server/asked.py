"""What requests may say: OpenAI's protocol, from which the OpenAPI document is made too.

A field that stands here does what OpenAI documents; one that does not stand here is refused by name.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from launch.server.serving import TOP
from model.generate import Sampling
from model.generate.grammar import Grammar

MAX_CHOICES = 128
MAX_STOPS = 16
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Ignored = Annotated[Any, Field(default=None, description="Accepted and ignored, as it changes no answer.")]


class Fields(pydantic.BaseModel):
    """An object of a request: its fields and no others, each of its own type."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class StreamOptions(Fields):
    """What a stream says besides."""

    include_usage: bool | None = Field(None, description="End with an event that has the counts of tokens.")
    include_obfuscation: bool | None = Field(None, description="Only false is possible: nothing is padded here.")


class JsonSchema(Fields):
    """What a JSON value has to be."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="The schema; by default any object.")
    strict: bool | None = Field(None, description="It is always kept to.")


class ResponseFormat(Fields):
    """The form of an answer: any text, a JSON object, or a JSON value that a schema describes."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def grammar(self) -> Grammar | None:
        """What the text has to be, or None."""
        given = self.json_schema.schema_ if self.json_schema and self.type == "json_schema" else None
        schema = {"type": "object"} if given is None else given
        return None if self.type == "text" else Grammar(json_schema=json.dumps(schema))


class Settings(Fields):
    """What both kinds of requests have."""

    model: str | None = Field(None, description="The one model that is served may be named.")
    temperature: float | None = Field(None, ge=0, le=2, description="By default 1; 0 takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1, description="By default 1.")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Choices for each prompt, by default 1.")
    max_tokens: int | None = Field(None, ge=0, description="The most tokens to write.")
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="The text ends before the first of these."
    )
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="Choice number i is drawn with seed + i; by default another each time."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="By default 0.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="By default 0.")
    logit_bias: dict[TokenKey, Bias] | None = Field(
        None, description="Token numbers, as strings, and what is added to their logits."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events as the text is written.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    response_format: ResponseFormat | None = Field(None, description="What the text has to be; any by default.")
    user: Ignored
    # Not OpenAI's, but of the same names in other servers.
    top_k: int | None = Field(None, ge=0, lt=2**31, description="Draw from the k likeliest; 0 is all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Draw from tokens this times as likely as the likeliest.")
    typical_p: float | None = Field(None, gt=0, le=1, description="Locally typical sampling; 1 is all.")
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="1 is none.")
    guided_regex: Annotated[str, Field(min_length=1, max_length=10_000)] | None = Field(
        None, description="A regular expression of what the text has to be, from its beginning to its end."
    )

    def sampling(self) -> Sampling:
        """How tokens are to be chosen; raises ConfigError."""
        names = (
            "temperature", "top_p", "presence_penalty", "frequency_penalty", "top_k", "min_p", "typical_p",
            "repetition_penalty",
        )  # fmt: skip
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        bias = tuple((int(token), value) for token, value in (self.logit_bias or {}).items())
        return Sampling(**given, bias=bias)

    def grammar(self) -> Grammar | None:
        """What the text has to be, or None."""
        if self.guided_regex is not None:
            return Grammar(regex=self.guided_regex)
        return self.response_format.grammar() if self.response_format else None

    @property
    def stops(self) -> list[str]:
        """The strings before which a text ends."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def choices(self) -> int:
        """How many texts are asked for with each prompt."""
        return self.n or 1

    @property
    def with_usage(self) -> bool:
        """Whether a stream is to end with counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(Settings):
    """The body of POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
    ) = Field(description="One text or several; or token numbers, to which nothing is added.")
    best_of: int | None = Field(
        None, ge=1, le=MAX_CHOICES, description="Write so many and give the `n` likeliest, by their tokens' mean."
    )
    echo: bool | None = Field(None, description="The prompt first.")
    logprobs: int | None = Field(None, ge=0, le=TOP, description="Log-probabilities, also of so many of the likeliest.")
    suffix: None = Field(None, description="Nothing is filled in here.")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, all texts or all tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [list(self.prompt)]  # type: ignore[arg-type]
        return list(self.prompt)  # type: ignore[arg-type]


class TextPart(Fields):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Fields):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = Field(None, description="Accepted and ignored: templates have no place for it.")

    def to_dict(self) -> dict[str, str]:
        """The message as templates expect it; they know a developer by the older name."""
        role = "system" if self.role == "developer" else self.role
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": role, "content": text}


class ChatRequest(Settings):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0, description="The newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Log-probabilities of the tokens.")
    top_logprobs: int | None = Field(None, ge=0, le=TOP, description="Of so many of the likeliest; with `logprobs`.")
    metadata: Ignored
    safety_identifier: Ignored
    prompt_cache_key: Ignored


class TokenizeRequest(Fields):
    """The body of POST /tokenize."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = Field(None, description="By default true: with what begins a text.")


class DetokenizeRequest(Fields):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: list[TokenId]
