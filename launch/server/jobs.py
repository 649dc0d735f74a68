"""What a request asks the engine for: prompts as tokens, within the limits, with settings that the engine takes."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence

from configs.derived import translates
from launch.server.asked import ChatRequest, CompletionRequest, Settings
from launch.server.errors import wrong
from launch.server.serving import Serving
from model.generate.engine import Request
from train.data.chat import ChatError
from train.writing import reads

USUAL_TOKENS = 16  # What OpenAI's completions write where nothing is said.


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a text begins with.

    Attributes:
      tokens: what the network reads.
      source: what it translates, if it does that.
      text: as it is echoed.
      begins: whether no text is before what comes next.
    """

    tokens: list[int]
    source: list[int] | None
    text: str
    begins: bool


@dataclasses.dataclass(frozen=True)
class Job:
    """One HTTP request as the engine's requests: for each prompt in turn, each of its choices.

    Attributes:
      written: choices that are written for each prompt; the `kept` likeliest are given.
      logprobs: whether to tell the log-probabilities of tokens.
      echo: whether the prompt comes first.
    """

    requests: list[Request]
    prompts: list[Prompt]
    stops: list[str]
    written: int
    kept: int
    logprobs: bool
    echo: bool = False

    def prompt(self, number: int) -> Prompt:
        """That of a request."""
        return self.prompts[number // self.written]


def completion_job(serving: Serving, asked: CompletionRequest) -> Job:
    """The job of POST /v1/completions; raises ApiError for what cannot be served."""
    _check(serving, asked)
    if translates(serving.config) and asked.echo:
        raise wrong("echo", f"{serving.name} translates, and its text does not begin with the prompt.")
    written = asked.best_of or asked.choices
    if written < asked.choices:
        raise wrong("best_of", f"{asked.best_of} is less than n={asked.choices}.")
    if asked.stream and written > asked.choices:
        raise wrong("best_of", "which texts are best is known at their end: leave out stream.")
    prompts = [_prompt(serving, given) for given in asked.prompts]
    told, echo = asked.logprobs is not None, bool(asked.echo)
    max_tokens = USUAL_TOKENS if asked.max_tokens is None else asked.max_tokens
    requests = _requests(serving, asked, prompts, written, max_tokens, asked.logprobs or 0, echo and told)
    return Job(requests, prompts, asked.stops, written, asked.choices, told, echo)


def chat_job(serving: Serving, asked: ChatRequest) -> Job:
    """The job of POST /v1/chat/completions; raises ApiError for what cannot be served."""
    _check(serving, asked)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise wrong("top_logprobs", "it needs logprobs=true.")
    given = [value for value in (asked.max_tokens, asked.max_completion_tokens) if value is not None]
    if len(given) > 1:
        raise wrong("max_tokens", "it is the older name of max_completion_tokens: give one of them.")
    try:
        ids = serving.tokenizer.conversation([message.to_dict() for message in asked.messages])
    except ChatError as error:
        hint = "" if serving.tokenizer.chat else " Use /v1/completions, or start the server with --chat_template=FILE."
        raise wrong("messages", f"{error}{hint}") from error
    prompts, max_tokens = [Prompt(ids, None, "", begins=True)], given[0] if given else None
    requests = _requests(serving, asked, prompts, asked.choices, max_tokens, asked.top_logprobs or 0, False)
    return Job(requests, prompts, asked.stops, asked.choices, asked.choices, bool(asked.logprobs))


def _check(serving: Serving, asked: Settings) -> None:
    """Raises ApiError for what the fields' own rules do not see."""
    serving.check_name(asked.model)
    if asked.stream_options is not None:
        if not asked.stream:
            raise wrong("stream_options", "they are for stream=true.")
        if asked.stream_options.include_obfuscation:
            raise wrong("stream_options.include_obfuscation", "nothing is padded here; set it to false.")
    if asked.grammar() is not None:
        name = "response_format" if asked.guided_regex is None else "guided_regex"
        if not serving.reads_grammars:
            raise wrong(name, "the server has no package llguidance, which it needs: pip install 'seq2see[grammar]'.")
        if asked.guided_regex is not None and asked.response_format is not None:
            raise wrong("guided_regex", "it contradicts response_format: leave one of them out.")
    known = serving.config.tokenizer.vocab_size
    for token in asked.logit_bias or {}:
        if int(token) >= known:
            raise wrong(f"logit_bias.{token}", f"it is no token: {serving.name} has {known}.")


def _prompt(serving: Serving, given: str | list[int]) -> Prompt:
    tokenizer, translator = serving.tokenizer, translates(serving.config)
    if isinstance(given, str):
        (tokens,), sources = reads(serving.config, tokenizer, [given])
        return Prompt(tokens, sources[0] if sources else None, given, begins=not given or translator)
    known = serving.config.tokenizer.vocab_size
    if max(given) >= known:
        raise wrong("prompt", f"{max(given)} is no token: {serving.name} has {known}.")
    if translator:
        return Prompt([tokenizer.start_of_target], given, "", begins=True)
    text = tokenizer.decode(given)
    return Prompt(given, None, text, begins=not text)


def _requests(
    serving: Serving,
    asked: Settings,
    prompts: Sequence[Prompt],
    written: int,
    max_tokens: int | None,
    top: int,
    echoed: bool,
) -> list[Request]:
    """The engine's requests; `max_tokens` None is as many as there is room for, `echoed` tells the prompts' tokens."""
    limits, name = serving.limits, "messages" if isinstance(asked, ChatRequest) else "prompt"
    if len(prompts) * written > limits.room:
        many = f"{len(prompts) * written} texts at once are asked for, and at most {limits.room} are written here."
        raise wrong("n" if written > 1 else name, many)
    if max_tokens is not None and max_tokens > limits.max_tokens:
        raise wrong("max_tokens", f"{max_tokens} is too much: at most {limits.max_tokens} are written here.")
    for prompt in prompts:
        length, room = len(prompt.source or prompt.tokens), limits.length - len(prompt.tokens)
        if length > limits.max_prompt:
            long = f"it has {length} tokens, and at most {limits.max_prompt} are read here."
            raise wrong(name, long, "context_length_exceeded")
        if room < (max_tokens or 0):
            short = f"{max_tokens} is too much: behind {len(prompt.tokens)} tokens of {name} there is room for {room}."
            raise wrong("max_tokens", short, "context_length_exceeded")
    sampling, seed = asked.sampling(), secrets.randbits(32) if asked.seed is None else asked.seed
    return [
        Request(
            tokens=tuple(prompt.tokens),
            sampling=sampling,
            max_tokens=min(limits.max_tokens, limits.length - len(prompt.tokens)) if max_tokens is None else max_tokens,
            seed=seed + number,
            ends=serving.tokenizer.ends,
            top=top,
            source=None if prompt.source is None else tuple(prompt.source),
            prompt_logprobs=echoed or max_tokens == 0,
            grammar=asked.grammar(),
        )
        for prompt in prompts
        for number in range(written)
    ]
