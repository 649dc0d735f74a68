"""What a network looks at while it reads a text, and what it expects next: numbers for the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.convert import override
from configs.derived import is_recurrent
from configs.schema import Config, ConfigError
from launch.views.alignment import Translation
from launch.views.attention_panels import Seen
from launch.views.pieces import Pieces
from model import Source, build
from model.generate import Sampling, generate
from model.lens.record import record
from train.checkpoint import Restored
from train.data.sections import Section
from train.data.tokenizer import Tokenizer
from train.run import Run
from train.translation import held_out_pairs
from train.writing import reads


def check_attends(config: Config) -> None:
    """Raises ConfigError for a network without attention."""
    if config.model.network == "lstm":
        raise ConfigError(
            "--model.network=lstm has no attention to look at: what it knows of a text is a state of fixed size."
        )


def look_at(module: Any, params: Any, tokenizer: Tokenizer, ids: Sequence[int]) -> Seen:
    """What the network attends to while it reads the tokens `ids` (`read_ids` of a text)."""
    weights_LBNTS = record(module, params, jnp.array([ids], jnp.int32))["layers/attention/weights"]
    return seen_within(
        module.config, Pieces.of(tokenizer, ids), weights_LBNTS, causal=module.config.model.network != "encoder"
    )


def seen_within(config: Config, pieces: Pieces, weights_LBNTS: jax.Array, causal: bool) -> Seen:
    """The weights of a text's attention to itself."""
    weights_LNTS = np.asarray(weights_LBNTS[:, 0], np.float32)
    return Seen(pieces, pieces, weights_LNTS, causal, sinks=config.model.attention_sinks)


def looped(restored: Restored) -> Any:
    """The network with its layers in a loop, which compiles in a tenth of the time."""
    return build(override(restored.config, {"model.layers": "scan"}))


@partial(jax.jit, static_argnums=0)
def logits(module: Any, params: Any, tokens_BT: jax.Array) -> jax.Array:
    """What the network makes of texts of one length, [B,T,V]."""
    return module.apply({"params": params}, tokens_BT)


def read_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of `text` as the beginning of a document, as in training: of ours after the end-of-text token."""
    return tokenizer.prompt(text)


def look_at_translation(
    module: Any, params: Any, tokenizer: Tokenizer, text: str, target: str | None = None, *, max_tokens: int
) -> Translation:
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
    places = {"alignment": "layers/cross_attention/weights"}
    if not is_recurrent(module.config):
        places |= {"encoder": "encoder/layers/attention/weights", "decoder": "layers/attention/weights"}
    found = record(
        module, params, jnp.array([read], jnp.int32), list(places.values()), Source.of(jnp.array(sources, jnp.int32))
    )
    named = {
        name: Pieces.of(tokenizer, ids) for name, ids in (("source", sources[0]), ("read", read), ("written", written))
    }
    weights_LNTS = np.asarray(found[places["alignment"]][:, 0], np.float32)
    sinks = module.config.model.attention_sinks
    within = {
        side: seen_within(module.config, named[text], found[places[side]], causal)
        for side, text, causal in (("encoder", "source", False), ("decoder", "read", True))
        if side in places
    }
    alignment = Seen(named["written"], named["source"], weights_LNTS, causal=False, sinks=sinks)
    return Translation(
        alignment, named["read"].tokens, (sources[0], read), within.get("encoder"), within.get("decoder")
    )


def shown_pair(run: Run) -> Section:
    """A held-out sentence of middle length with its translation; the first one, if there is none."""
    pairs = held_out_pairs(run.corpus, max(1, run.config.train.score_sentences))
    lengths = [len(run.tokenizer.encode(pair.source)) for pair in pairs]
    return next((pair for pair, length in zip(pairs, lengths, strict=True) if 10 <= length <= 25), pairs[0])


def count(params: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
