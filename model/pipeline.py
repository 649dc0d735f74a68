"""Layers shared out among devices, with a batch that goes through them in parts, all devices at work on different ones.

The schedule is circular (Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters",
section 2.2): of L layers each of S stages holds R groups of K, and each of M parts goes around R times. In step t stage
s works on visit v = t - s, which is part v mod M in its round v // M; what it made goes on to the next stage, from the
last to the first. Of M R + S - 1 steps each stage waits in S - 1.

One program describes all stages: the stage is a leading axis of every array, spread over the mesh axis `stage`, and the
step to the next stage is a rotation of that axis, which compiles to a message between neighbours.

Shapes: B batch, T length, D model width, b = B / M rows of a part.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.scope import LazyRng
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

from configs.schema import Config
from model.attention import Places
from model.experts import LOSSES
from model.lens.places import recording
from model.remat import LAYER_INPUT, policy
from model.sharding import RULES, constrain, interleaved, parameter_axes, partition, ways

(STAGE,) = RULES["layers"]


class Pipeline(nn.Module):
    """The stack of layers with the parameters, random streams and results that `stack` has by itself.

    It works where nothing but parameters is given. With a cache, edits or recording, and for a batch that does not fall
    into `train.microbatches` parts, the devices go through the layers one after the other.
    """

    config: Config
    stack: Any  # The layers, as a scan.
    block: Any  # One of them, unbound.
    num_layers: int

    def setup(self) -> None:
        """Have the parameters where the stack has them."""
        nn.share_scope(self, self.stack)

    def __call__(
        self, x_BTD: jax.Array, layers_L: Any, places: Places, memory_BSD: jax.Array | None
    ) -> tuple[jax.Array, None]:
        """The residual stream [B,T,D] after the last layer, in the form that the stack returns."""
        parts = self.config.train.microbatches
        given = set(self.variables)
        if self.is_initializing() or given != {"params"} or recording(self) or x_BTD.shape[0] % parts:
            return self.stack(x_BTD, layers_L, places, memory_BSD)
        x_BTD, losses = self._run(self._shared_out(layers_L), x_BTD, places, memory_BSD)
        if self.is_mutable_collection(LOSSES):
            self.put_variable(LOSSES, "pipeline", losses)
        return constrain(x_BTD, "rows", "length", "width"), None

    def _shared_out(self, layers_L: Any) -> Any:
        """What belongs to each layer, (parameters, its `Layer`, random key or None), as arrays [S,R,K,...]."""
        S, R = ways("layers"), self.config.train.rounds

        def share(x: jax.Array, *names: str) -> jax.Array:
            x = x.reshape(R, S, self.num_layers // (R * S), *x.shape[1:]).swapaxes(0, 1)
            return jax.lax.with_sharding_constraint(x, PartitionSpec(STAGE, None, None, *partition(*names)))

        flat: dict[str, Any] = flatten_dict(self.variables["params"], sep="/")
        params = {path: share(x, *parameter_axes(f"layers/{path}")[1:]) for path, x in flat.items()}
        key = self._dropout()
        keys_L = key and jax.random.split(key.rng, self.num_layers)
        layers = jax.tree.map(lambda x_L: share(jnp.asarray(x_L)), layers_L)
        return unflatten_dict(params, sep="/"), layers, None if keys_L is None else share(keys_L)

    def _dropout(self) -> LazyRng | None:
        """The random stream from which the stack would draw, or None where nothing is drawn."""
        if self.block.deterministic or self.scope is None or "dropout" not in self.scope.rngs:
            return None
        return LazyRng.create(self.scope.rngs["dropout"])

    def _visit(self, layers_RK: Any, turn: jax.Array, x_bTD: jax.Array, beside: Any) -> tuple[jax.Array, jax.Array]:
        """A part goes through a stage's layers of this turn: [b,T,D], and what they add to the objective."""
        key, mutable = self._dropout(), [LOSSES] if self.is_mutable_collection(LOSSES) else []

        def layer(x_bTD: jax.Array, of_layer: Any) -> tuple[jax.Array, jax.Array]:
            params, of_itself, own = of_layer
            rngs = {"dropout": LazyRng(own, key.suffix)} if key else {}  # As a scan gives it to each layer.
            (x_bTD, _), variables = self.block.apply(
                {"params": params}, x_bTD, of_itself, *beside, rngs=rngs, mutable=mutable
            )
            return x_bTD, sum((jnp.sum(loss) for loss in jax.tree.leaves(variables)), start=jnp.float32(0))

        layers_K = jax.tree.map(lambda x_RK: jax.lax.dynamic_index_in_dim(x_RK, turn, keepdims=False), layers_RK)
        unroll = self.num_layers if self.config.model.layers == "unroll" else 1
        x_bTD, losses_K = jax.lax.scan(layer, x_bTD, layers_K, unroll=unroll)
        return x_bTD, jnp.sum(losses_K)

    def _run(
        self, layers: Any, x_BTD: jax.Array, places: Places, memory_BSD: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """All visits: the stream [B,T,D], and what layers add to the objective."""
        S, R, M = ways("layers"), self.config.train.rounds, self.config.train.microbatches
        slopes_N, places = places.slopes_N, dataclasses.replace(places, slopes_N=None)  # All the rest has rows.
        entering_MbTD, places_M, memory_MbSD = jax.tree.map(lambda x: _parts(x, M), (x_BTD, places, memory_BSD))

        def visit(layers_RK: Any, turn: jax.Array, x_bTD: jax.Array, part: jax.Array) -> tuple[jax.Array, jax.Array]:
            places, memory_bSD = jax.tree.map(lambda x_M: x_M[part], (places_M, memory_MbSD))
            return self._visit(layers_RK, turn, x_bTD, (dataclasses.replace(places, slopes_N=slopes_N), memory_bSD))

        if (remat := self.config.model.remat) != "none":
            # Else the weights of the visited layers would be kept for the backward pass, once for each visit.
            visit = jax.checkpoint(visit, policy=policy(remat, LAYER_INPUT), prevent_cse=False)
        all_stages = jax.vmap(visit, spmd_axis_name=STAGE)
        first_S = (jnp.arange(S) == 0)[:, None, None, None]

        def step(carry: tuple[jax.Array, jax.Array], t: jax.Array) -> tuple[Any, jax.Array]:
            x_SbTD, waiting_SMbTD = carry
            visit_S, left = t - jnp.arange(S), (t - S + 1) % M  # The part that leaves the last stage.
            x_SbTD = _spread(jnp.where(first_S, waiting_SMbTD[:, t % M], x_SbTD), 1)
            x_SbTD, losses_S = all_stages(layers, jnp.clip(visit_S // M, 0, R - 1), x_SbTD, visit_S % M)
            x_SbTD = _spread(jnp.roll(x_SbTD, 1, axis=0), 1)
            back_SbTD = jnp.where(t < S - 1, waiting_SMbTD[:, left], x_SbTD)  # At first none leaves.
            at_work_S = (visit_S >= 0) & (visit_S < R * M)
            return (x_SbTD, waiting_SMbTD.at[:, left].set(back_SbTD)), jnp.sum(jnp.where(at_work_S, losses_S, 0))

        # Parts wait at the first stage, to enter and between rounds. That all stages have room for them makes one
        # program of them; what the others hold there means nothing.
        waiting_SMbTD = _spread(jnp.where(first_S[:, None], entering_MbTD, jnp.zeros_like(entering_MbTD)), 2)
        start = _spread(jnp.zeros_like(waiting_SMbTD[:, 0]), 1), waiting_SMbTD
        (_, waiting_SMbTD), losses = jax.lax.scan(step, start, jnp.arange(R * M + S - 1))
        # A sum over stages of which one has something: taking that one is more than XLA's partitioner knows.
        left_MbTD = jnp.sum(jnp.where(first_S[:, None], waiting_SMbTD, jnp.zeros_like(waiting_SMbTD)), axis=0)
        return left_MbTD.swapaxes(0, 1).reshape(x_BTD.shape), jnp.sum(losses)


def _parts(x_B: jax.Array, M: int) -> jax.Array:
    """[B,...] as [M,b,...], on all stages."""
    others = [PartitionSpec.UNCONSTRAINED] * (x_B.ndim - 1)
    return jax.lax.with_sharding_constraint(interleaved(x_B, M), PartitionSpec(None, *partition("batch"), *others))


def _spread(x: jax.Array, rows: int) -> jax.Array:
    """A stream [S,...,b,T,D], whose rows are axis `rows`, with its stages each on their own devices."""
    spec = PartitionSpec(STAGE, *[None] * (rows - 1), *partition("batch", "length", "width"))
    return jax.lax.with_sharding_constraint(x, spec)
