"""What a network takes *it* to stand for: on the sentence of the story, and on all that were held out.

Shapes: B batch, T length (S the same tokens as keys), L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from configs.derived import is_recurrent
from configs.schema import ConfigError
from model import build
from model.lens.patch import patch_everywhere
from model.lens.places import INTERMEDIATES, WEIGHTS
from model.lens.record import record
from model.lens.rollout import rollout
from train.checkpoint import Restored
from train.data.coreference import STORY, Sentence, held_out_sentences
from train.data.tokenizer import Tokenizer

PRONOUN = " it"
WORDS = ("tired", "wide")
CHUNK = 400  # Sentences that are read at once.


@dataclass(frozen=True)
class Reading:
    """A sentence as a network reads it."""

    text: str
    tokens: list[str]  # with the space before them; the first is the end of text
    at: int  # where *it* stands
    probability: dict[str, float]  # noun -> probability that *it* stands for it: of all words, those of the two nouns
    rollout: list[float]  # of each token, the share in what stands at *it* after the last layer
    output: np.ndarray  # logits at *it*, [V] float32

    def draws_from(self) -> str:
        """The noun that *it* draws more from, by rollout."""
        return max(self.probability, key=lambda noun: self.rollout[self.tokens.index(f" {noun}")])


@dataclass(frozen=True)
class HeldOut:
    """How a network does on pairs of nouns that it was never trained on."""

    pairs: int
    sentences: int
    probability: float  # of the right noun among all words, mean over the sentences
    lowest: float  # and the least
    right: float  # the share of sentences in which the right noun is likelier than the other
    flips: float  # the share of (pair, two last words) where *it* draws more from the right noun in both, by rollout


def check_can_read(restored: Restored, name: str) -> None:
    """Raises ConfigError unless the run learnt to read pronouns; `name` is how the user called it."""
    if is_recurrent(restored.config) or restored.config.model.attention in ("linear", "delta"):
        raise ConfigError(f"{name} has no attention whose weights are an average: there is no rollout to show.")
    source = restored.config.data.source
    if source != "coreference":
        raise ConfigError(
            f"{name} was trained on --data.source={source} and has not learnt what a pronoun stands for: "
            f"`uv run -m launch.train --config=coreference` trains one that has."
        )


def story(restored: Restored) -> list[Reading]:
    """How the network reads the two sentences of the story."""
    return [read(restored, STORY.text(word), (STORY.subject, STORY.object)) for word in WORDS]


def read(restored: Restored, text: str, nouns: tuple[str, str]) -> Reading:
    """How the network reads one sentence in which *it* stands for one of two nouns."""
    tokenizer = restored.tokenizer
    ids, at = _ids(tokenizer, text)
    seen = record(build(restored.config), restored.params, jnp.array([ids], jnp.int32), WEIGHTS[:1])
    probability_V = np.asarray(jax.nn.softmax(seen["logits"][0, at]))
    return Reading(
        text=text,
        tokens=[tokenizer.token_text(id) for id in ids],
        at=at,
        probability={noun: float(probability_V[_word(tokenizer, f" {noun}")]) for noun in nouns},
        rollout=np.asarray(rollout(seen[WEIGHTS[0]])[0, at]).tolist(),
        output=np.asarray(seen["logits"][0, at]),
    )


def patched(restored: Restored) -> np.ndarray:
    """P(street) - P(animal) at *it* in "... too tired", with one vector of "... too wide" put in, [L+1,T] float32.

    The first row replaces what enters layer 0, row l + 1 what leaves layer l.
    """
    module, tokenizer = build(restored.config), restored.tokenizer
    (tired, at), (wide, _) = (_ids(tokenizer, STORY.text(word)) for word in WORDS)
    both = jnp.array([tired], jnp.int32), jnp.array([wide], jnp.int32)
    entering_LSV, leaving_LSV = (
        patch_everywhere(module, restored.params, *both, at, f"layers/residual/{place}")[:, :, 0]
        for place in ("before", "after")
    )
    probability_LSV = jax.nn.softmax(jnp.concatenate([entering_LSV[:1], leaving_LSV]))
    animal, street = (_word(tokenizer, f" {noun}") for noun in (STORY.subject, STORY.object))
    return np.asarray(probability_LSV[..., street] - probability_LSV[..., animal])


def held_out(restored: Restored) -> HeldOut:
    """How the network does on all held-out sentences."""
    sentences = held_out_sentences(restored.config.data)
    chunks = [_judged(restored, sentences[start : start + CHUNK]) for start in range(0, len(sentences), CHUNK)]
    probability_B, other_B, draws_B = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    return HeldOut(
        pairs=len({(sentence.subject, sentence.object) for sentence, _ in sentences}),
        sentences=len(sentences),
        probability=float(probability_B.mean(dtype=np.float64)),
        lowest=float(probability_B.min()),
        right=float((probability_B > other_B).mean()),
        flips=float(draws_B.reshape(-1, 2).all(axis=1).mean()),  # Two last words at a time, one of each side.
    )


def _judged(restored: Restored, sentences: Sequence[tuple[Sentence, str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability of the right noun and of the other, and whether *it* draws more from the right one, each [B]."""
    tokenizer = restored.tokenizer
    read = [_ids(tokenizer, sentence.text(adjective)) for sentence, adjective in sentences]
    tokens_BT, segments_BT = np.zeros((2, len(read), max(len(ids) for ids, _ in read)), np.int32)
    for row, (ids, _) in enumerate(read):
        tokens_BT[row, : len(ids)], segments_BT[row, : len(ids)] = ids, 1
    at_B, rows_B = np.array([at for _, at in read]), np.arange(len(read))
    nouns_B2 = np.array([[_word(tokenizer, f" {noun}") for noun in (s.subject, s.object)] for s, _ in sentences])
    places_B2 = (tokens_BT[:, None] == nouns_B2[..., None]).argmax(axis=-1)
    right_B2 = np.array([[s.referent(a) == noun for noun in (s.subject, s.object)] for s, a in sentences])

    probability_BV, shares_BS = _at(build(restored.config), restored.params, tokens_BT, segments_BT, at_B)
    probability_B2 = np.asarray(probability_BV)[rows_B[:, None], nouns_B2]
    shares_B2 = np.asarray(shares_BS)[rows_B[:, None], places_B2]
    draws_B = shares_B2[right_B2] > shares_B2[~right_B2]
    return probability_B2[right_B2], probability_B2[~right_B2], draws_B


@partial(jax.jit, static_argnums=0)
def _at(
    module: Any, params: Any, tokens_BT: jax.Array, segments_BT: jax.Array, at_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Probabilities [B,V] at the token `at_B` of each row, and the shares [B,S] of what stands there."""
    logits_BTV, variables = module.apply({"params": params}, tokens_BT, None, segments_BT, mutable=[INTERMEDIATES])
    rows_B = jnp.arange(len(tokens_BT))
    places: dict[str, Any] = flatten_dict(variables[INTERMEDIATES], sep="/")
    return jax.nn.softmax(logits_BTV[rows_B, at_B]), rollout(places[WEIGHTS[0]])[rows_B, at_B]


def _ids(tokenizer: Tokenizer, text: str) -> tuple[list[int], int]:
    """The tokens of a sentence, and which of them is its pronoun."""
    ids = tokenizer.prompt(text)
    return ids, ids.index(_word(tokenizer, PRONOUN))


def _word(tokenizer: Tokenizer, word: str) -> int:
    """The token of a word.

    Raises:
      ConfigError: it is not one token.
    """
    ids = tokenizer.encode(word)
    if len(ids) != 1:
        raise ConfigError(f"{word!r} has {len(ids)} tokens: reading pronouns takes --tokenizer.source=words.")
    return ids[0]
