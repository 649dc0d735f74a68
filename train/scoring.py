"""How probable a network finds a text that is given, token by token.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.check import check_length
from configs.derived import fills_in, translates
from configs.schema import ConfigError
from model import Source
from model.generate.choose import likeliest
from model.generate.decode import bucket
from train.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Token:
    """A token that could stand at a place, with the natural logarithm of its probability."""

    id: int
    text: str
    logprob: float

    def to_dict(self) -> dict[str, Any]:
        """The token as `--json` gives it."""
        return {"id": self.id, "text": self.text, "logprob": self.logprob}


@dataclass(frozen=True)
class Chosen(Token):
    """The token that was chosen, and the likeliest ones at its place, best first."""

    top: tuple[Token, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The token as `--json` gives it, with the others of its place."""
        return {**super().to_dict(), "top": [other.to_dict() for other in self.top]}


@dataclass(frozen=True)
class Scored:
    """A text and the probabilities of its tokens, each given what stands before it."""

    prompt: str
    text: str
    tokens: tuple[Chosen, ...]

    @property
    def logprob(self) -> float:
        """Natural logarithm of the probability of the whole text."""
        return math.fsum(token.logprob for token in self.tokens)

    @property
    def perplexity(self) -> float:
        """Of how many equally likely tokens the network would have to choose, to be as unsure, on average."""
        return math.exp(-self.logprob / len(self.tokens))

    @property
    def bits_per_byte(self) -> float:
        """What the text would take if compressed by the network, in bits per byte of UTF-8."""
        return -self.logprob / math.log(2) / len(self.text.encode())

    def to_dict(self) -> dict[str, Any]:
        """The text as `--json` gives it."""
        numbers = {"logprob": self.logprob, "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}
        tokens = [token.to_dict() for token in self.tokens]
        return {"prompt": self.prompt, "text": self.text, **numbers, "tokens": tokens}


def score(module: Any, params: Any, tokenizer: Tokenizer, text: str, *, prompt: str = "", top: int = 0) -> Scored:
    """The probabilities of a text behind a prompt, or of a text that is the whole document.

    Args:
      prompt: what stands before the text and is not scored; what is translated, by a network that translates.
      top: how many of the likeliest tokens to keep at each place.

    Raises:
      ConfigError: nothing to score, a text longer than a learned position table, a network that fills in.
    """
    if fills_in(module.config):
        raise ConfigError("--score: a network that fills in what is masked gives a text no probability.")
    written, source = tokenizer.encode(text), None
    if not written:
        raise ConfigError("--score: the text is empty.")
    if translates(module.config):
        if not prompt:
            raise ConfigError("--score needs --prompt: the text of which it is a translation.")
        before, source = [tokenizer.start_of_target], tokenizer.source(prompt)
        check_length(module.config, len(source))
    else:
        before = tokenizer.prompt(prompt) if prompt else tokenizer.beginning
    check_length(module.config, len(before) + len(written))
    return Scored(prompt, text, tuple(given_tokens(module, params, tokenizer, before, written, source, top)))


def given_tokens(
    module: Any,
    params: Any,
    tokenizer: Tokenizer,
    before: Sequence[int],
    given: Sequence[int],
    source: Sequence[int] | None,
    top: int,
) -> list[Chosen]:
    """Tokens that stand behind others, with their probabilities and the likeliest at their places."""
    logprobs_TV = given_logprobs(module, params, before, given, source)
    result = []
    for id, logprobs_V in zip(given, logprobs_TV, strict=True):
        others = tuple(Token(*named(tokenizer, other, logprobs_V[other])) for other in likeliest(logprobs_V, top))
        result.append(Chosen(*named(tokenizer, np.int32(id), logprobs_V[id]), top=others))
    return result


def given_logprobs(
    module: Any, params: Any, before: Sequence[int], given: Sequence[int], source: Sequence[int] | None = None
) -> np.ndarray:
    """Natural logarithms of the probabilities of all tokens at the places of those `given`, [T,V] float32."""
    length = len(before) + len(given)
    tokens_BT = np.zeros((1, bucket(length)), np.int32)
    tokens_BT[0, :length] = [*before, *given]
    sources = None if source is None else Source.of(jnp.array([source], jnp.int32))
    logprobs_BTV = _log_probabilities(module, params, tokens_BT, np.int32(length), sources)
    return np.asarray(logprobs_BTV[0, len(before) - 1 : length - 1])


def named(tokenizer: Tokenizer, id: np.integer, logprob: np.floating) -> tuple[int, str, float]:
    """What `Token` is made of."""
    return int(id), tokenizer.token_text(int(id)), float(logprob)


@partial(jax.jit, static_argnums=0)
def _log_probabilities(
    module: Any, params: Any, tokens_BT: jax.Array, length: jax.Array, source: Source | None
) -> jax.Array:
    places_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    real_BT = (places_BT < length).astype(jnp.int32)
    return jax.nn.log_softmax(module.apply({"params": params}, tokens_BT, places_BT, real_BT, source=source))
