"""What is asked of the engine, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from model.generate.choose import Sampling
from model.generate.grammar import Grammar

PLAIN = Sampling()  # The network's own distribution.


@dataclass(frozen=True)
class Request:
    """A text to write."""

    tokens: tuple[int, ...]  # The prompt; a translator's: what its target begins with.
    sampling: Sampling = PLAIN
    max_tokens: int = 128  # The most to write; less where the engine's room ends. 0 needs `prompt_logprobs`.
    seed: int = 0
    ends: tuple[int, ...] = ()  # Tokens that end the text.
    top: int = 0  # How many of the likeliest tokens to report at each place.
    source: tuple[int, ...] | None = None  # What a translator translates.
    prompt_logprobs: bool = False  # Whether to report the log-probability of each token of the prompt as well.
    grammar: Grammar | None = None  # What the text has to be; it ends with one of `ends` when it is.


@dataclass(frozen=True)
class Token:
    """One token of a text, with the natural logarithm of its probability before temperature and filters.

    `top` are the likeliest tokens at its place with theirs, best first. `finish` tells how the text ended with it:
    "end" (a token of `ends`), "length", or "" if it goes on.
    """

    id: int
    logprob: float  # NaN for the first token of a prompt, before which nothing stands.
    top: tuple[tuple[int, float], ...] = ()
    finish: str = ""


@dataclass(frozen=True)
class Event:
    """What one step brought for one request."""

    ticket: int
    tokens: tuple[Token, ...]  # Empty only for a request of no tokens, which ends with its prompt.
    prompt: tuple[Token, ...] | None = None  # In the request's first event, if it was asked for.


@dataclass(frozen=True)
class EngineStats:
    """What the engine is doing."""

    queued: int  # Requests that wait for a slot.
    active: int  # Requests that have one.
    slots: int
    cache_tokens: int  # Tokens of texts in the cache.
    cache_capacity: int
    prefix_hits: int  # Tokens of prompts that were copied and not computed, since the engine was made.
    generated: int  # Tokens written since then.
