"""One stack of blocks between tokens and logits: the decoder-only Transformer, and the encoder that fills in words.

Shapes: B batch, T length, D model width, V vocabulary, L layers.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from configs.schema import Config
from model.kept import RING
from model.lens.places import tap
from model.source import Source
from model.transformer import Embedding, embed, find_places, or_default, through_layers, to_logits


class Decoder(nn.Module):
    """A language model: from the tokens so far, a logit for every token that could come next.

    With `model.network=encoder` each token sees those behind it as well, and the logits are for the token itself.
    """

    config: Config

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        rows_B: jax.Array | None = None,
        source: Source | None = None,
        *,
        deterministic: bool = True,
        head: bool = True,
    ) -> jax.Array:
        """Logits [B,T,V] float32.

        Args:
          tokens_BT: int32 token ids.
          positions_BT: place of each token in its document, by default 0..T-1; with a `cache`, also its slot.
          segments_BT: which packed document each token belongs to, 0 for padding; by default all are one. With a
            cache there is one document.
          rows_B: number of each row in the whole batch, by default 0..B-1; dropout differs between rows.
          source: nothing; only networks that translate have one.
          deterministic: False drops activations, with the random stream `dropout`.
          head: False returns what the output layer, `model.transformer.Head`, makes logits of, [B,T,D].
        """
        if source is not None:
            raise ValueError(f"A network of the kind {self.config.model.network} has no source to read.")
        config = self.config
        positions_BT, rows_B = or_default(tokens_BT, positions_BT, rows_B)
        places = find_places(
            config, positions_BT, segments_BT, rows_B,
            causal=config.model.network != "encoder", slots=cache_slots(self), ring=cache_slots(self, f"{RING}key"),
        )  # fmt: skip
        tokens = Embedding(config, config.tokenizer.vocab_size, name="embedding")
        x_BTD = tap(self, "embedded", embed(config, tokens, tokens_BT, positions_BT))
        x_BTD = through_layers(config, x_BTD, places, num_layers=config.model.num_layers, deterministic=deterministic)
        x_BTD = tap(self, "final", x_BTD)
        return to_logits(config, tokens, x_BTD) if head else x_BTD


def cache_slots(module: nn.Module, *names: str) -> int:
    """How many tokens the cache of self-attention has room for; 0 without one, or where a state is kept instead.

    Args:
      names: what is kept of tokens; by default, of all of them.
    """
    kept = module.variables.get("cache", {}).get("layers", {}).get("attention", {})
    return next((kept[name].shape[2] for name in names or ("key", "latent") if name in kept), 0)
