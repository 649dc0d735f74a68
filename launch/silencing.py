"""What a network predicts without each of its heads: the check beside every picture of attention.

Shapes: L layers, N heads, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from configs.derived import is_recurrent
from launch.look import logits, looped
from launch.views.alignment import Translation
from launch.views.knocked import Knocked
from model import Source
from model.generate.choose import likeliest
from model.lens.knockout import knock_out_logits
from model.lens.places import without_heads
from model.lens.record import record
from model.lens.rest import OnLayer
from train.checkpoint import Restored

CANDIDATES = 5  # Of the next token.


def knocked(restored: Restored, ids: Sequence[int], at: int, on_layer: OnLayer | None = None) -> Knocked | None:
    """What becomes of the prediction at a token without each head; None where heads cannot be silenced."""
    if is_recurrent(restored.config):
        return None
    module, params, tokens_1T = looped(restored), restored.params, jnp.array([ids], jnp.int32)
    before_V = jax.nn.softmax(logits(module, params, tokens_1T)[0, at])
    after_LNV = jax.nn.softmax(knock_out_logits(module, params, tokens_1T, at, on_layer=on_layer)[:, :, 0])
    return _candidates(restored, before_V, after_LNV, "what comes next")


def knocked_alignment(restored: Restored, translation: Translation, on_layer: OnLayer | None = None) -> Knocked | None:
    """What becomes of a written token without each head that reads the source, and without all of a layer."""
    if is_recurrent(restored.config):
        return None
    _, _, piece = translation.shown()
    at = translation.alignment.queries.starts[piece]
    module, params, place = looped(restored), restored.params, "layers/cross_attention/heads"
    source, read_1T = Source.of(jnp.array([translation.ids[0]])), jnp.array([translation.ids[1]])
    L, N = restored.config.model.num_layers, restored.config.model.num_heads
    after_LNV = knock_out_logits(module, params, read_1T, at, source, place=place, on_layer=on_layer)[:, :, 0]

    def without(off: list[tuple[int, int]]) -> jax.Array:
        edits = {place: without_heads(L, N, off)}
        return record(module, params, read_1T, (place,), source, edits)["logits"][0, at]

    if N > 1:  # What is called their mean in the picture.
        whole_LV = jnp.stack([without([(layer, head) for head in range(N)]) for layer in range(L)])
        after_LNV = jnp.concatenate([after_LNV, whole_LV[:, None]], axis=1)
    return _candidates(restored, jax.nn.softmax(without([])), jax.nn.softmax(after_LNV), f"token {at}")


def _candidates(restored: Restored, before_V: jax.Array, after_LNV: jax.Array, question: str) -> Knocked:
    """The likeliest of these probabilities."""
    ids = likeliest(np.log(np.asarray(before_V) + 1e-30), CANDIDATES)
    names = [restored.tokenizer.token_text(int(id)) for id in ids]
    return Knocked(names, np.asarray(before_V)[ids], np.asarray(after_LNV[:, :, ids]), question)
