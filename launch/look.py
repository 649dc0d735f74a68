"""What a network looks at while it reads a text, and what it expects next: numbers for the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.convert import is_recurrent
from configs.schema import Config, ConfigError
from launch.views.alignment import TranslationView
from model import Source
from model.generate import Sampling, generate
from model.lens.record import record
from train.data.sections import Section
from train.data.tokenizer import Tokenizer
from train.run import Run
from train.translation import held_out_pairs
from train.writing import reads


@dataclass(frozen=True)
class Look:
    """The tokens of a text, T of them, and how much each attends to each, [L,N,T,T] float32."""

    tokens: list[str]
    weights_LNTS: np.ndarray


def check_attends(config: Config) -> None:
    """Raises ConfigError for a network without attention."""
    if config.model.network == "lstm":
        raise ConfigError(
            "--model.network=lstm has no attention to look at: what it knows of a text is a state of fixed size."
        )


def look_at(module: Any, params: Any, tokenizer: Tokenizer, ids: Sequence[int]) -> Look:
    """What the network attends to while it reads the tokens `ids` (`read_ids` of a text)."""
    weights_LBNTS = record(module, params, jnp.array([ids], jnp.int32))["layers/attention/weights"]
    return Look([tokenizer.token_text(id) for id in ids], np.asarray(weights_LBNTS[:, 0]))


def read_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of `text` as the beginning of a document, as in training: of ours after the end-of-text token."""
    return tokenizer.prompt(text)


def look_at_translation(
    module: Any, params: Any, tokenizer: Tokenizer, text: str, target: str | None = None, *, max_tokens: int
) -> TranslationView:
    """What a translator attends to while it translates `text` into `target`, or greedily, if that is None.

    Args:
      max_tokens: the most tokens of a translation, and so of `target`.
    """
    (start,), sources = reads(module.config, tokenizer, [text])
    assert sources is not None
    if target is None:
        chunks = generate(
            module, params, [start], Sampling(temperature=0),
            max_tokens=max_tokens, seeds=[0], ends=tokenizer.ends, sources=sources,
        )  # fmt: skip
        tokens = np.concatenate([chunk.tokens_BC for chunk in chunks], axis=1)[0].tolist()
        ends = [place for place, token in enumerate(tokens) if token in tokenizer.ends]
        written = tokens[: ends[0] + 1] if ends else tokens
    else:
        written = [*tokenizer.encode(target), tokenizer.end_of_text]
    read = [*start, *written[:-1]]
    places = {"alignment_LNTS": "layers/cross_attention/weights"}
    if not is_recurrent(module.config):
        places["encoder_LNSS"], places["decoder_LNTT"] = "encoder/layers/attention/weights", "layers/attention/weights"
    found = record(
        module, params, jnp.array([read], jnp.int32), list(places.values()), Source.of(jnp.array(sources, jnp.int32))
    )
    return TranslationView(
        [tokenizer.token_text(id) for id in sources[0]],
        [tokenizer.token_text(id) for id in read],
        [tokenizer.token_text(id) for id in written],
        **{name: np.asarray(found[place][:, 0], np.float32) for name, place in places.items()},
    )


def shown_pair(run: Run) -> Section:
    """A held-out sentence of middle length with its translation; the first one, if there is none."""
    pairs = held_out_pairs(run.corpus, max(1, run.config.train.score_sentences))
    lengths = [len(run.tokenizer.encode(pair.source)) for pair in pairs]
    return next((pair for pair, length in zip(pairs, lengths, strict=True) if 10 <= length <= 25), pairs[0])


def rounded(weights: np.ndarray) -> list[Any]:
    """Attention weights as nested lists, with the six digits that float32 softmax is good for."""
    return np.round(weights.astype(np.float64), 6).tolist()


def count(params: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
