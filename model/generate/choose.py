"""Choosing a token from the logits: greedily, or drawn from the distribution after cutting off its tail.

What is done, in this order, which is the one of Hugging Face `transformers`:

1. to the logits, whether the choice is greedy or drawn: bias, repetition penalty, presence and frequency penalty,
   banned tokens, what a grammar does not allow;
2. to what is drawn from: temperature, top-k, top-p, min-p, typical, epsilon, eta. Each looks at the distribution that
   the one before it left; only typical can cut off the likeliest token.

A forced token is taken whatever all of these say. The settings are arrays with one entry per row, so that rows with
different settings are computed together by one compiled program; what no row asks for is not computed.

Shapes: B rows, V vocabulary, F forced tokens at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from configs.schema import ConfigError
from model.generate.grammar import only_allowed

Array = jax.Array | np.ndarray
GROUP = 256  # Tokens among which the second number of a draw decides.


@dataclass(frozen=True)
class Sampling:
    """How to choose; the defaults draw from the network's own distribution.

    Attributes:
      temperature: logits are divided by it; 0 takes the likeliest token.
      top_k: keep only the k likeliest tokens; 0 keeps all.
      top_p: keep the fewest tokens whose probabilities add up to at least p (Holtzman et al. 2020); 1 keeps all.
      min_p: keep tokens at least this times as likely as the likeliest (Nguyen et al. 2024); 0 keeps all.
      typical_p: keep the fewest tokens that add up to at least p, those first whose information is nearest to the
        entropy (Meister et al. 2022, "Locally Typical Sampling"); 1 keeps all.
      epsilon: keep tokens of at least this probability (Hewitt et al. 2022, "Truncation Sampling"); 0 keeps all.
      eta: keep tokens of at least min(eta, sqrt(eta) exp(-entropy)) (the same paper); 0 keeps all.
      repetition_penalty: the logit of a token that stands in the prompt or the text so far is divided by it if
        positive, else multiplied (Keskar et al. 2019, section 4.1); 1 is off.
      presence_penalty: taken off the logit of each token that has been written, as OpenAI's API defines it.
      frequency_penalty: the same, times how often it has been written.
      bias: (token, what is added to its logit), each token once.
      banned: tokens that are never chosen.
      forced: the first tokens to write, whatever the network says.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon: float = 0.0
    eta: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    banned: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name, valid, range_text in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("typical_p", 0 < self.typical_p <= 1, "above 0 and at most 1"),
            ("epsilon", 0 <= self.epsilon < 1, "from 0 to below 1"),
            ("eta", 0 <= self.eta < 1, "from 0 to below 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0; 1 is off"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a finite number; 0 is off"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "a finite number; 0 is off"),
        ):
            if not valid:
                raise ConfigError(f"--{name}={getattr(self, name)}: it must be {range_text}.")
        for token, value in self.bias:
            if not math.isfinite(value):
                raise ConfigError(f"--bias={token}:{value}: it must be a finite number; ban a token by --banned.")
        if both := sorted(set(self.banned) & set(self.forced)):
            raise ConfigError(f"--banned={both[0]} contradicts --forced={both[0]}: leave one of them out.")

    def check_tokens(self, vocabulary: int) -> None:
        """Refuse tokens that a vocabulary of this size does not have.

        Raises:
          ConfigError: names the token, or a ban of all tokens.
        """
        lists = {"bias": [token for token, _ in self.bias], "banned": self.banned, "forced": self.forced}
        for name, tokens in lists.items():
            wrong = next((token for token in tokens if not 0 <= token < vocabulary), None)
            if wrong is not None:
                raise ConfigError(f"--{name}={wrong}: there is no such token; they go from 0 to {vocabulary - 1}.")
        if len(set(self.banned)) == vocabulary:
            raise ConfigError(f"--banned: all {vocabulary} tokens are banned, so that there is nothing to choose.")


@flax.struct.dataclass
class Choice:
    """The settings of `Sampling` for each row, as arrays."""

    temperature_B: Array
    top_k_B: Array
    top_p_B: Array
    min_p_B: Array
    typical_p_B: Array
    epsilon_B: Array
    eta_B: Array
    repetition_penalty_B: Array
    presence_penalty_B: Array
    frequency_penalty_B: Array
    biased_B: Array  # Whether `bias_BV` has anything to say.
    bias_BV: Array  # -inf for banned tokens.
    forced_BF: Array  # -1 where nothing is forced.

    @staticmethod
    def of(samplings: Sequence[Sampling], vocabulary: int, forced: int = 0) -> Choice:
        """The settings of one row after another, with room for `forced` forced tokens (at least for those there are).

        Raises:
          ConfigError: a token that the vocabulary does not have.
        """
        bias_BV = np.zeros((len(samplings), vocabulary), np.float32)
        longest = max(forced, 1, *(len(sampling.forced) for sampling in samplings))
        forced_BF = np.full((len(samplings), longest), -1, np.int32)
        for row, sampling in enumerate(samplings):
            sampling.check_tokens(vocabulary)
            for token, value in sampling.bias:
                bias_BV[row, token] += value
            bias_BV[row, list(sampling.banned)] = -np.inf
            forced_BF[row, : len(sampling.forced)] = sampling.forced
        numbers = {
            f"{name}_B": np.array([getattr(sampling, name) for sampling in samplings], dtype)
            for name, dtype in NUMBERS.items()
        }
        biased_B = np.array([bool(sampling.bias or sampling.banned) for sampling in samplings])
        return Choice(**numbers, biased_B=biased_B, bias_BV=bias_BV, forced_BF=forced_BF)

    def forced_at(self, place_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The token that is forced behind so many written ones, [B] int32, and whether one is, [B] bool."""
        F = self.forced_BF.shape[1]
        at_B1 = jnp.minimum(place_B, F - 1)[:, None]
        forced_B = jnp.take_along_axis(jnp.asarray(self.forced_BF), at_B1, axis=1)[:, 0]
        return forced_B, (forced_B >= 0) & (place_B < F)


NUMBERS = {
    "temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "min_p": np.float32, "typical_p": np.float32,
    "epsilon": np.float32, "eta": np.float32, "repetition_penalty": np.float32, "presence_penalty": np.float32,
    "frequency_penalty": np.float32,
}  # fmt: skip


@flax.struct.dataclass
class History:
    """What the penalties count."""

    prompt_BV: Array  # Whether a token stands in the prompt, bool.
    written_BV: Array  # How often it has been written since, int32.

    @staticmethod
    def of(prompts: Sequence[Sequence[int]], vocabulary: int) -> History:
        """Nothing is written yet."""
        prompt_BV = np.zeros((len(prompts), vocabulary), bool)
        for row, prompt in enumerate(prompts):
            prompt_BV[row, list(prompt)] = True
        return History(prompt_BV, np.zeros(prompt_BV.shape, np.int32))

    def add(self, token_B: jax.Array, count_B: jax.Array) -> History:
        """The token of each row has been written `count_B` (int32) times more."""
        row_B = jnp.arange(token_B.shape[0])
        return History(self.prompt_BV, jnp.asarray(self.written_BV).at[row_B, token_B].add(count_B))


def adjust(logits_BV: jax.Array, choice: Choice, history: History) -> jax.Array:
    """Logits [B,V] float32 with bias, penalties and bans: what is greedily chosen from."""

    def biased(logits_BV: jax.Array) -> jax.Array:
        # A ban may be added before the penalties: none of them makes -inf anything else.
        return logits_BV + choice.bias_BV

    def penalized(logits_BV: jax.Array) -> jax.Array:
        penalty_B1 = _column(choice.repetition_penalty_B)
        written_BV = jnp.asarray(history.written_BV)
        punished_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
        logits_BV = jnp.where(history.prompt_BV | (written_BV > 0), punished_BV, logits_BV)
        presence_BV = jnp.where(written_BV > 0, _column(choice.presence_penalty_B), 0.0)
        return logits_BV - presence_BV - written_BV.astype(jnp.float32) * _column(choice.frequency_penalty_B)

    penalizes_B = (choice.repetition_penalty_B != 1) | (choice.presence_penalty_B != 0)
    penalizes_B |= choice.frequency_penalty_B != 0
    logits_BV = _where_asked(choice.biased_B, biased, logits_BV)
    return _where_asked(penalizes_B, penalized, logits_BV)


def filter_logits(logits_BV: jax.Array, choice: Choice) -> jax.Array:
    """Logits [B,V] float32 of the distribution that is drawn from; -inf where a token was cut off."""
    V = logits_BV.shape[-1]
    logits_BV = logits_BV / _column(jnp.where(choice.temperature_B > 0, choice.temperature_B, 1.0))
    top_k_B = jnp.where((choice.top_k_B > 0) & (choice.top_k_B < V), choice.top_k_B, V)

    def to_k(logits_BV: jax.Array) -> jax.Array:
        lowest_B1 = _threshold(logits_BV, jnp.ones_like(logits_BV), top_k_B.astype(jnp.float32))
        return jnp.where(logits_BV < lowest_B1, -jnp.inf, logits_BV)

    def to_p(logits_BV: jax.Array) -> jax.Array:
        share_BV = jax.nn.softmax(logits_BV)
        lowest_B1 = _threshold(logits_BV, share_BV, choice.top_p_B)
        likelier_B1 = jnp.sum(jnp.where(logits_BV > lowest_B1, share_BV, 0.0), axis=-1, keepdims=True)
        # Of tokens that are equally likely, as many as are needed, the first ones.
        equal_BV = logits_BV == lowest_B1
        earlier_BV = (jnp.cumsum(equal_BV, axis=-1) - equal_BV.astype(jnp.int32)).astype(jnp.float32)
        needed_BV = likelier_B1 + earlier_BV * share_BV < _column(choice.top_p_B)
        kept_BV = (logits_BV > lowest_B1) | (equal_BV & (needed_BV | (earlier_BV == 0)))
        return jnp.where(kept_BV | _column(choice.top_p_B >= 1), logits_BV, -jnp.inf)

    def to_likely(logits_BV: jax.Array) -> jax.Array:
        highest_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
        return jnp.where(logits_BV < highest_B1 + jnp.log(_column(choice.min_p_B)), -jnp.inf, logits_BV)

    def to_typical(logits_BV: jax.Array) -> jax.Array:
        logprob_BV = jax.nn.log_softmax(logits_BV)
        near_BV = -jnp.abs(-logprob_BV - _entropy(logprob_BV))
        farthest_B1 = _threshold(near_BV, jnp.exp(logprob_BV), choice.typical_p_B)
        return jnp.where((near_BV < farthest_B1) & _column(choice.typical_p_B < 1), -jnp.inf, logits_BV)

    def to_epsilon(logits_BV: jax.Array) -> jax.Array:
        return _cut_below(logits_BV, _column(choice.epsilon_B))

    def to_eta(logits_BV: jax.Array) -> jax.Array:
        eta_B1, entropy_B1 = _column(choice.eta_B), _entropy(jax.nn.log_softmax(logits_BV))
        return _cut_below(logits_BV, jnp.minimum(eta_B1, jnp.sqrt(eta_B1) * jnp.exp(-entropy_B1)))

    logits_BV = _where_asked(top_k_B < V, to_k, logits_BV)
    logits_BV = _where_asked(choice.top_p_B < 1, to_p, logits_BV)
    logits_BV = _where_asked(choice.min_p_B > 0, to_likely, logits_BV)
    logits_BV = _where_asked(choice.typical_p_B < 1, to_typical, logits_BV)
    logits_BV = _where_asked(choice.epsilon_B > 0, to_epsilon, logits_BV)
    return _where_asked(choice.eta_B > 0, to_eta, logits_BV)


def _threshold(order_BV: jax.Array, mass_BV: jax.Array, least_B: Array) -> jax.Array:
    """The highest entry of each row such that it and all above it have at least this mass, [B,1]; else -inf or less.

    Found bit by bit, since sorting a vocabulary takes a CPU longer than computing the logits.
    """
    bits_BV = jax.lax.bitcast_convert_type(order_BV, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # As unsigned numbers, in the order of the floats.
    bits_BV = jnp.where(bits_BV >= sign, ~bits_BV, bits_BV | sign)

    def refine(step: jax.Array, found_B1: jax.Array) -> jax.Array:
        higher_B1 = found_B1 | (sign >> step.astype(jnp.uint32))
        mass_B1 = jnp.sum(jnp.where(bits_BV >= higher_B1, mass_BV, 0.0), axis=-1, keepdims=True)
        return jnp.where(mass_B1 >= _column(least_B), higher_B1, found_B1)

    found_B1 = jax.lax.fori_loop(0, 32, refine, jnp.zeros((order_BV.shape[0], 1), jnp.uint32))
    # Where rounding left less mass than asked for, everything.
    found_B1 = jnp.maximum(found_B1, jnp.min(bits_BV, axis=-1, keepdims=True))
    return jax.lax.bitcast_convert_type(jnp.where(found_B1 >= sign, found_B1 & ~sign, ~found_B1), jnp.float32)


def _cut_below(logits_BV: jax.Array, probability_B1: jax.Array) -> jax.Array:
    """Without the tokens that are less probable, except the likeliest."""
    cut_BV = jax.nn.softmax(logits_BV) < probability_B1
    return jnp.where(cut_BV & (logits_BV < jnp.max(logits_BV, axis=-1, keepdims=True)), -jnp.inf, logits_BV)


def _entropy(logprob_BV: jax.Array) -> jax.Array:
    """In nats, [B,1]; what has been cut off adds nothing."""
    plogp_BV = jnp.where(logprob_BV > -jnp.inf, jnp.exp(logprob_BV) * logprob_BV, 0.0)
    return -jnp.sum(plogp_BV, axis=-1, keepdims=True)


def choose(
    logits_BV: jax.Array,
    keys_B: jax.Array,
    choice: Choice,
    history: History,
    place_B: jax.Array,
    allowed_BW: Array | None = None,
) -> jax.Array:
    """One token per row, [B] int32; each row draws with its own key, so that no row depends on its neighbours.

    Args:
      logits_BV: the network's, float32.
      keys_B: used once.
      place_B: how many tokens have been written in each row, int32.
      allowed_BW: a mask of `model/generate/grammar.py`, or None, for all tokens.
    """
    logits_BV = adjust(logits_BV, choice, history)
    if allowed_BW is not None:
        logits_BV = only_allowed(logits_BV, jnp.asarray(allowed_BW))
    likeliest_B = jnp.argmax(logits_BV, axis=-1)
    draws_B = jnp.asarray(choice.temperature_B > 0)
    token_B = jax.lax.cond(
        jnp.any(draws_B),
        lambda: jnp.where(draws_B, jax.vmap(draw)(keys_B, filter_logits(logits_BV, choice)), likeliest_B),
        lambda: likeliest_B,
    ).astype(jnp.int32)
    forced_B, is_forced_B = choice.forced_at(place_B)
    return jnp.where(is_forced_B, forced_B, token_B)


def draw(key: jax.Array, logits_V: jax.Array) -> jax.Array:
    """A token drawn from softmax(logits), int32.

    First a group of GROUP tokens, then one of the group, by two uniform numbers: noise for each token of a vocabulary
    (`jax.random.categorical`) takes a CPU ten times as long.
    """
    group = min(GROUP, len(logits_V))
    exp_V = jnp.exp(logits_V - jnp.max(logits_V))
    exp_RG = jnp.pad(exp_V, (0, -len(logits_V) % group)).reshape(-1, group)
    uniform_2 = jax.random.uniform(key, (2,))
    row = _place(jnp.sum(exp_RG, axis=1), uniform_2[0])
    return row * group + _place(exp_RG[row], uniform_2[1])


def _place(mass_X: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first index up to which there is more than this share of all mass; never one without mass."""
    upto_X = jnp.cumsum(mass_X)
    found_X = (upto_X > uniform * upto_X[-1]) & (mass_X > 0)
    # Rounding may leave none: then the last one with mass.
    last = len(mass_X) - 1 - jnp.argmax(mass_X[::-1] > 0)
    return jnp.where(jnp.any(found_X), jnp.argmax(found_X), last).astype(jnp.int32)


def likeliest(logprobs_V: np.ndarray, top: int) -> np.ndarray:
    """The `top` likeliest tokens, best first; of equals the first. For the host, which sorts only if any are wanted."""
    return np.argsort(-logprobs_V, kind="stable")[:top] if top else np.zeros(0, np.int64)


def _where_asked(asks_B: Array, change: Callable[[jax.Array], jax.Array], logits_BV: jax.Array) -> jax.Array:
    """`change(logits)` if any row asks for it; for a row that does not, it changes nothing."""
    return jax.lax.cond(jnp.any(jnp.asarray(asks_B)), change, lambda logits_BV: logits_BV, logits_BV)


def _column(setting_B: Array) -> jax.Array:
    return jnp.asarray(setting_B)[:, None]
