"""What heads of a network are for: those that find repeats, and those that name who is meant.

Shapes: B batch, T length, L layers, N heads, S tokens that are patched, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from configs.schema import ConfigError
from model import build
from model.lens.context import losses_of
from model.lens.heads import head_scores
from model.lens.knockout import knock_out_logits
from model.lens.logits import direct_attribution
from model.lens.patch import edited, patch_everywhere
from model.lens.places import HEADS, WEIGHTS, without_heads
from model.lens.record import record
from train.checkpoint import Restored

Head = tuple[int, int]  # Layer and number.
# Who gave, and who is given to: "... gave a drink to" goes on with the one who has been named once (Wang et al. 2022,
# "Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small", section 2).
PROMPT = "When John and Mary went to the store, {} gave a drink to"
NAMES = (" Mary", " John")  # What is right behind "John gave", and what behind "Mary gave".


def repeated_tokens(restored: Restored, rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Random words, `length` in each row, and the same once more: [B,2T] int32."""
    words = np.flatnonzero(restored.tokenizer.byte_lengths)
    once_BT = np.random.default_rng(seed).choice(words, (rows, length))
    return np.concatenate([once_BT, once_BT], axis=1).astype(np.int32)


def scores(restored: Restored, tokens_BT: np.ndarray) -> dict[str, np.ndarray]:
    """The `head_scores` of the network on these tokens, each [L,N]."""
    found = record(build(restored.config), restored.params, jnp.asarray(tokens_BT), WEIGHTS[:1])
    return {name: np.asarray(x) for name, x in head_scores(found[WEIGHTS[0]], jnp.asarray(tokens_BT)).items()}


def strongest(score_LN: np.ndarray, count: int) -> list[Head]:
    """The heads with the highest score, best first."""
    order = np.argsort(-score_LN, axis=None, kind="stable")[:count]
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, score_LN.shape), strict=True)]


def loss_on_repeats(restored: Restored, tokens_BT: np.ndarray, off: Sequence[Head] = ()) -> float:
    """Nats per token of the second half, from its second token on, without the heads `off`."""
    model = restored.config.model
    edits = {HEADS[0]: without_heads(model.num_layers, model.num_heads, off)}
    logits_BTV = edited(build(restored.config), restored.params, jnp.asarray(tokens_BT), edits)
    half = tokens_BT.shape[1] // 2
    return float(jnp.mean(losses_of(logits_BTV[:, half:], jnp.asarray(tokens_BT[:, half:]))))


@dataclass(frozen=True)
class IndirectObject:
    """The logit of the right name less that of the other, taken apart, knocked out and patched."""

    tokens: list[str]
    difference: float
    sum_of_parts: float  # what all components write for it, together
    written_LN: np.ndarray  # what each head writes for it,
    without_LN: np.ndarray  # what is left without each,
    patched_LS: np.ndarray  # and what it is with one vector of the other prompt: behind layer l, at token s.


def indirect_object(restored: Restored) -> IndirectObject:
    """Who is given the drink, and by which heads.

    Raises:
      ConfigError: a tokenizer for which a name is not one token.
    """
    module, tokenizer = build(restored.config), restored.tokenizer
    named = [tokenizer.encode(name) for name in NAMES]
    prompts = [tokenizer.prompt(PROMPT.format(giver)) for giver in ("John", "Mary")]
    if any(len(ids) != 1 for ids in named) or len({len(ids) for ids in prompts}) != 1:
        raise ConfigError("The names of the indirect-object prompts have to be one token each in this network.")
    pair = np.array(named, np.int32)[:, 0]
    tokens_BT, other_BT = (jnp.array([ids], jnp.int32) for ids in prompts)
    at = tokens_BT.shape[1] - 1

    def difference(logits: Any) -> np.ndarray:
        return np.asarray(logits[..., pair[0]] - logits[..., pair[1]])

    parts = direct_attribution(module, restored.params, tokens_BT, at, jnp.asarray(pair[None]))
    total = sum(float(np.asarray(part, np.float64).sum()) for name, part in parts.items() if name != "total")
    plain = record(module, restored.params, tokens_BT, ())["logits"][0, at]
    return IndirectObject(
        [tokenizer.token_text(id) for id in prompts[0]],
        float(difference(plain)),
        total,
        np.asarray(parts["heads"][:, :, 0]),
        difference(knock_out_logits(module, restored.params, tokens_BT, at)[:, :, 0]),
        difference(patch_everywhere(module, restored.params, tokens_BT, other_BT, at)[:, :, 0]),
    )
