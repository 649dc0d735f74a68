"""Multi-head attention: softmax(QK^T/sqrt(d))V, and nothing else.

Each token asks (query), each token before it offers (key), and what is read is the average of what they hold (value),
weighted by how well question and offer match. Vaswani et al. 2017, section 3.2.

Shapes: B batch, T query length, S key length, D model width, N heads, K key/value heads, H head width.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from configs.convert import head_width, num_kv_heads
from configs.schema import Config
from model import kernels, masks, positions
from model.layers import Linear, Norm, residual_gain
from model.lens.places import recording, tap


@flax.struct.dataclass
class Places:
    """Where the tokens stand: what every layer's attention needs to know, computed once."""

    query_BT: jax.Array  # Position of each query, int32; in a cache it is the slot that its key is written to.
    distance_BTS: jax.Array  # How far each key lies behind each query, int32.
    visible_BTS: jax.Array  # Causal and within one document, bool.
    rotation: tuple[jax.Array, jax.Array] | None  # RoPE's cosines and sines.
    rows_B: jax.Array  # Number of each row in the whole batch, int32.


class Attention(nn.Module):
    """One layer of multi-head attention over the text so far; reads and extends a `cache` collection if given one."""

    config: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array, places: Places, window: jax.Array) -> jax.Array:
        """What each token reads from the others, [B,T,D]; `window` is an int32 scalar, 0 for no window."""
        config, model = self.config, self.config.model
        D, N, K, H = model.width, model.num_heads, num_kv_heads(config), head_width(config)

        query_BTNH = Linear(config, (D,), (N, H), name="query")(x_BTD)
        key_BSKH = Linear(config, (D,), (K, H), name="key")(x_BTD)
        value_BSKH = Linear(config, (D,), (K, H), name="value")(x_BTD)
        if model.qk_norm:
            query_BTNH = Norm(config, "rms", name="query_norm")(query_BTNH)
            key_BSKH = Norm(config, "rms", name="key_norm")(key_BSKH)
        if places.rotation is not None:
            query_BTNH = positions.rotate(query_BTNH, places.rotation)
            key_BSKH = positions.rotate(key_BSKH, places.rotation)
        key_BSKH, value_BSKH = self.remember(key_BSKH, value_BSKH, places.query_BT)

        visible_BTS = places.visible_BTS
        if model.window:
            visible_BTS = visible_BTS & masks.in_window(places.distance_BTS, window)
        bias_BNTS = None
        if model.position == "alibi":
            slopes_1N11 = jnp.asarray(positions.alibi_slopes(N))[None, :, None, None]
            bias_BNTS = -slopes_1N11 * places.distance_BTS[:, None].astype(jnp.float32)

        if kernels.choose(config) == "fused" and not recording(self):
            read_BTNH = kernels.fused(query_BTNH, key_BSKH, value_BSKH, visible_BTS, bias_BNTS)
        else:
            sinks_N = None
            if model.attention_sinks:
                sinks_N = self.param("sinks", nn.initializers.zeros, (N,), jnp.dtype(model.param_dtype))
            read_BTNH, weights_BNTS, scores_BNTS = kernels.dense(
                query_BTNH, key_BSKH, value_BSKH, visible_BTS, bias_BNTS,
                softcap=model.attention_softcap, sinks_N=sinks_N,
            )  # fmt: skip
            tap(self, "weights", weights_BNTS)
            tap(self, "scores", scores_BNTS)
        return Linear(config, (N, H), (D,), gain=residual_gain(config), name="output")(read_BTNH)

    def remember(self, key_BTKH: jax.Array, value_BTKH: jax.Array, slots_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Write keys and values into the cache at their positions and return all of it; without a cache, return them.

        A token's slot is its position, so which slots are filled needs no record of its own: those up to the query's.
        A position beyond the cache is dropped: that is how padding stays out of it.
        """
        if not self.has_variable("cache", "key"):
            return key_BTKH, value_BTKH
        row_B1 = jnp.arange(key_BTKH.shape[0])[:, None]
        for name, new_BTKH in (("key", key_BTKH), ("value", value_BTKH)):
            kept_BSKH = self.get_variable("cache", name)
            kept_BSKH = kept_BSKH.at[row_B1, slots_BT].set(new_BTKH.astype(kept_BSKH.dtype), mode="drop")
            self.put_variable("cache", name, kept_BSKH)
        return self.get_variable("cache", "key"), self.get_variable("cache", "value")
