"""What a network makes of a text: the logits of what comes next, how likely each token was, where each head looked.

Shapes: T tokens of the text, S tokens that are looked at, V vocabulary, L layers, N heads, B batch (of one).
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.convert import override
from configs.derived import encoder_layers, fills_in, is_recurrent, layer_windows, longest_text, translates
from configs.schema import Config, ConfigError
from model import Source, build
from model.generate.cache import empty_cache
from model.lens.places import Edit, without_heads
from model.lens.record import record
from train.data.tokenizer import Tokenizer

LONGEST = 512  # Tokens: the weights of all heads are kept, and their number grows with the square.
SHORTEST = 32  # Texts are padded to this times a power of two, so that few shapes are compiled.
KEPT_BYTES = 2**29  # Of weights of the texts that were read last.
# Kinds of attention: of the text to itself, of a translation to its source, of the source to itself.
WEIGHTS = {
    "self": "layers/attention/weights",
    "cross": "layers/cross_attention/weights",
    "encoder": "encoder/layers/attention/weights",
}


@dataclasses.dataclass(frozen=True)
class Text:
    """What is read: token ids, those of the text that they translate, and the (kind, layer, head) that are silenced."""

    ids: tuple[int, ...]
    source: tuple[int, ...] | None = None
    off: frozenset[tuple[str, int, int]] = frozenset()


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the network computed on a text.

    Attributes:
      logits_V: of what comes after the text, float32.
      logprobs_T: natural logarithm of the probability of each token after those before it, float32; 0 for the first.
      entropies_T: of the distribution that each token was one of, in nats, float32; 0 for the first.
      weights: by kind of attention, [L,N,T,S] float32.
      cache: keys and values, so that one more token is read alone; None where that cannot be.
    """

    logits_V: np.ndarray
    logprobs_T: np.ndarray
    entropies_T: np.ndarray
    weights: dict[str, np.ndarray]
    cache: Any = None


def attention_kinds(config: Config) -> dict[str, tuple[int, int]]:
    """(layers, heads) of each kind of attention that this network has and that can be looked at."""
    model = config.model
    if is_recurrent(config):
        return {"cross": (1, 1)} if translates(config) else {}
    kinds = {"self": (model.num_layers, model.num_heads)}
    if translates(config):
        kinds["cross"] = (model.num_layers, model.num_heads)
        kinds["encoder"] = (encoder_layers(config), model.num_heads)
    return kinds


class Reader:
    """One network, and what it made of the texts that it read last. May be called from several threads."""

    def __init__(self, config: Config, params: Any, tokenizer: Tokenizer) -> None:
        """Raises ConfigError for a network that has no next token."""
        if fills_in(config):
            raise ConfigError(
                f"--model.network={config.model.network} fills in what is missing and continues nothing: "
                "use launch.sample with <|mask|> in its --prompt."
            )
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.kinds = attention_kinds(self.config)
        self.longest = min(LONGEST, longest_text(self.config) or LONGEST)
        self.silences = not is_recurrent(self.config)
        # Of these, what a token reads is a row over the slots of a cache.
        self._extends = self.config.model.attention in ("mha", "gqa", "mqa") and not (
            is_recurrent(self.config) or any(layer_windows(self.config, self.config.model.num_layers))
        )
        # Looped over, thirty layers compile in a tenth of the time that they take unrolled, and a token is read faster.
        self._module, self._lock = build(override(config, {"model.layers": "scan"})), threading.Lock()
        self._kept: collections.OrderedDict[Text, Reading] = collections.OrderedDict()

    def read(self, text: Text) -> Reading:
        """What the network makes of the text; one that was read before is not read again.

        Raises:
          ConfigError: the text is empty or too long, has a source or lacks one, or names what the network has not.
        """
        self._check(text)
        with self._lock:
            if text not in self._kept:
                before = self._kept.get(dataclasses.replace(text, ids=text.ids[:-1]))
                if before is not None and _room(before) >= len(text.ids):
                    self._kept[text] = self._extended(text, before)
                else:
                    self._kept[text] = self._whole(text)
            self._kept.move_to_end(text)
            while len(self._kept) > 1 and sum(map(_bytes, self._kept.values())) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return self._kept[text]

    def prepare(self, goes_on: Callable[[], bool]) -> None:
        """Compile for the lengths that most texts have, so that nobody waits for it later, as long as it `goes_on`."""
        size = SHORTEST
        while size <= min(LONGEST // 2, self.longest) and goes_on():
            text = Text((0,) * size, (0,) * SHORTEST if translates(self.config) else None)
            before = self._whole(dataclasses.replace(text, ids=text.ids[:-1]))
            if before.cache is not None and goes_on():
                self._extended(text, before)
            size *= 2

    def _whole(self, text: Text) -> Reading:
        T, S = len(text.ids), len(text.source or ())
        tokens_1T = jnp.asarray(self._padded(text.ids))
        source, slots = None, 0
        if text.source is not None:
            source_1S = jnp.asarray(self._padded(text.source))
            source, slots = Source.of(source_1S, jnp.array([S], jnp.int32)), source_1S.shape[1]
        # What is behind a token changes nothing of what is computed for it, so that padding needs no mask; in a cache,
        # the tokens that come later take its place.
        cache = empty_cache(self.config, 1, tokens_1T.shape[1], slots) if self._extends else None
        found = self._record(text, tokens_1T, self.kinds, source, cache)
        logits_V, logprobs_T, entropies_T = _summary(found["logits"][0], tokens_1T[0], T - 1)
        lengths = {"self": (T, T), "cross": (T, S), "encoder": (S, S)}
        weights = {
            kind: np.asarray(found[WEIGHTS[kind]][:, 0, :, : lengths[kind][0], : lengths[kind][1]], np.float32)
            for kind in self.kinds
        }
        summary = np.asarray(logits_V), np.asarray(logprobs_T)[:T], np.asarray(entropies_T)[:T]
        return Reading(*summary, weights, found.get("cache"))

    def _extended(self, text: Text, before: Reading) -> Reading:
        """The reading of one more token, read alone."""
        T, S = len(text.ids), len(text.source or ())
        kinds = [kind for kind in self.kinds if kind != "encoder"]
        token_11, place_11 = jnp.array([text.ids[-1:]], jnp.int32), jnp.array([[T - 1]], jnp.int32)
        found = self._record(text, token_11, kinds, None, before.cache, place_11)
        weights = dict(before.weights)
        for kind, length in (("self", T), ("cross", S)):
            if kind in kinds:
                row_LN1S = np.asarray(found[WEIGHTS[kind]][:, 0, :, :, :length], np.float32)
                old_LNTS = before.weights[kind]
                old_LNTS = np.pad(old_LNTS, [(0, 0)] * 3 + [(0, length - old_LNTS.shape[3])])
                weights[kind] = np.concatenate([old_LNTS, row_LN1S], axis=2)
        logprobs_V = np.asarray(jax.nn.log_softmax(before.logits_V))
        return Reading(
            np.asarray(found["logits"][0, 0]),
            np.append(before.logprobs_T, logprobs_V[text.ids[-1]]),
            np.append(before.entropies_T, -np.sum(np.exp(logprobs_V) * logprobs_V)),
            weights,
            found["cache"],
        )

    def _record(
        self,
        text: Text,
        tokens_1T: jax.Array,
        kinds: Iterable[str],
        source: Source | None,
        cache: Any,
        positions_1T: jax.Array | None = None,
    ) -> dict[str, Any]:
        what = [WEIGHTS[kind] for kind in kinds]
        return record(self._module, self.params, tokens_1T, what, source, self._edits(text), cache, positions_1T)

    def _padded(self, ids: tuple[int, ...]) -> np.ndarray:
        size = SHORTEST
        while size < len(ids):
            size *= 2
        tokens_1T = np.full((1, min(size, self.longest)), self.tokenizer.end_of_text, np.int32)
        tokens_1T[0, : len(ids)] = ids
        return tokens_1T

    def _edits(self, text: Text) -> dict[str, Edit]:
        """Also where nothing is silenced: then it is one compiled program, and a click on a head waits for none."""
        edits: dict[str, Edit] = {}
        for kind, (layers, heads) in self.kinds.items() if self.silences else ():
            off = [(layer, head) for other, layer, head in text.off if other == kind]
            edits[WEIGHTS[kind].replace("weights", "heads")] = without_heads(layers, heads, off)
        return edits

    def _check(self, text: Text) -> None:
        for name, ids in (("ids", text.ids), ("source", text.source)):
            if ids is None:
                continue
            if not 0 < len(ids) <= self.longest:
                raise ConfigError(f"{name} has {len(ids)} tokens: this page shows texts of 1 to {self.longest}.")
            wrong = [id for id in ids if not 0 <= id < self.config.tokenizer.vocab_size]
            if wrong:
                vocabulary = self.config.tokenizer.vocab_size
                raise ConfigError(f"{name} has the token {wrong[0]}: there are 0 to {vocabulary - 1}.")
        if translates(self.config) != (text.source is not None):
            raise ConfigError("source is for networks that translate, and those need one.")
        for kind, layer, head in text.off:
            self.check_head(kind, layer, head)
        if text.off and not self.silences:
            raise ConfigError(f"off: --model.network={self.config.model.network} has no heads to silence.")

    def check_head(self, kind: str, layer: int, head: int) -> None:
        """Raises ConfigError for a head that this network does not have."""
        layers, heads = self.kinds.get(kind, (0, 0))
        if not (0 <= layer < layers and 0 <= head < heads):
            known = ", ".join(f"{name} ({L} layers, {N} heads)" for name, (L, N) in self.kinds.items())
            raise ConfigError(f"layer {layer}, head {head} of {kind!r}: this network has {known or 'no attention'}.")


def _bytes(reading: Reading) -> int:
    return sum(array.nbytes for array in jax.tree.leaves((reading.logits_V, reading.weights, reading.cache)))


def _room(reading: Reading) -> int:
    """How many tokens its cache has room for."""
    return 0 if reading.cache is None else reading.cache["layers"]["attention"]["key"].shape[2]


@jax.jit
def _summary(logits_TV: jax.Array, tokens_T: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    logprobs_TV = jax.nn.log_softmax(logits_TV)
    # A token's number is that of the place before it, where it was predicted.
    logprobs_P = jnp.take_along_axis(logprobs_TV[:-1], tokens_T[1:, None], axis=-1)[:, 0]
    entropies_P = -jnp.sum(jnp.exp(logprobs_TV[:-1]) * logprobs_TV[:-1], axis=-1)
    return logits_TV[last], jnp.pad(logprobs_P, (1, 0)), jnp.pad(entropies_P, (1, 0))


def thumbnails(weights_LNTS: np.ndarray, pixels: int = 32) -> np.ndarray:
    """All heads as small pictures [L,N,P,Q] uint8, P and Q at most `pixels`: square roots, 255 for a weight of 1.

    Each pixel shows the largest of its weights, so that no bright cell is lost; of weights below 0, their size.
    """
    T, S = weights_LNTS.shape[2:]
    down, across = -(-T // pixels), -(-S // pixels)
    size_LNTS = np.pad(np.abs(weights_LNTS), ((0, 0), (0, 0), (0, -T % down), (0, -S % across)))
    shape = (*weights_LNTS.shape[:2], size_LNTS.shape[2] // down, down, size_LNTS.shape[3] // across, across)
    pooled_LNPQ = size_LNTS.reshape(shape).max((3, 5))
    return np.rint(255 * np.sqrt(np.minimum(pooled_LNPQ, 1))).astype(np.uint8)
