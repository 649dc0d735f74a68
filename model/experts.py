"""Mixture of experts: many feed-forward layers, of which a router picks a few for each token.

Shazeer et al. 2017; the router and its losses as in Fedus et al. 2021 (Switch) and Jiang et al. 2024 (Mixtral).

Shapes: B batch, T length, D model width, E experts, C choices per token, F feed-forward width, M tokens and N = M C
choices in all, P blocks of S places each, in which the tokens of one expert stand together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.struct import dataclass, field
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from configs.derived import feed_forward_width
from configs.schema import Config
from model.layers import ACTIVATIONS, residual_gain
from model.lens.places import looked_at, tap
from model.sharding import RULES, parameter_axes, partition, platform, ways

LOSSES = "losses"  # The collection of what layers add to the objective.

Maps = dict[str, dict[str, jax.Array]]  # up, gate, down: each a kernel [E, inputs, outputs] and perhaps a bias.
Multiply = Callable[[jax.Array, dict[str, jax.Array]], jax.Array]


class Experts(nn.Module):
    """A feed-forward layer per expert; each token goes through `experts_per_token` of them, weighted by the router.

    Adds two losses to the collection `losses`, each [B] float32: a sum over the row's real tokens, times its weight.
    """

    config: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
        """Map [B,T,D] to [B,T,D]; where `real_BT` is False the result is 0, and no expert's time is taken."""
        config, model = self.config, self.config.model
        logits_BTE = checkpoint_name(Router(config, name="router")(x_BTD), "router")
        probability_BTE = jax.nn.softmax(logits_BTE)
        tap(self, "router", probability_BTE)
        weight_BTC, chosen_BTC = jax.lax.top_k(probability_BTE, model.experts_per_token)
        if model.router_renormalize:
            weight_BTC = weight_BTC / jnp.sum(weight_BTC, axis=-1, keepdims=True)
        chosen_BTC = jnp.where(real_BT[:, :, None], chosen_BTC, model.num_experts)  # Padding goes to none.
        if self.is_mutable_collection(LOSSES):
            balance_B, z_B = router_losses(logits_BTE, probability_BTE, chosen_BTC)
            self.put_variable(LOSSES, "balance", model.router_balance * balance_B)
            self.put_variable(LOSSES, "z", model.router_z_loss * z_B)
        maps = ExpertMaps(config, name="experts")()
        # Only while training, where the losses are asked for: what is written must not depend on a batch's width.
        limit = model.expert_capacity > 0 and self.is_mutable_collection(LOSSES)
        weight_BTC = weight_BTC.astype(x_BTD.dtype)
        if looked_at(self, "hidden"):
            return self.openly(maps, x_BTD, weight_BTC, chosen_BTC)
        return mixture(config, maps, x_BTD, weight_BTC, chosen_BTC, limit)

    def openly(self, maps: Maps, x_BTD: jax.Array, weight_BTC: jax.Array, chosen_BTC: jax.Array) -> jax.Array:
        """`mixture` without a limit, for whoever looks at hidden units: every expert reads every token.

        The place `hidden` is [B,T,E,F], 0 where an expert was not chosen.
        """

        def multiply(x_BTI: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
            y_BTEO = jnp.einsum("BTI,EIO->BTEO", x_BTI, weights["kernel"])
            return y_BTEO + weights["bias"][None, None] if "bias" in weights else y_BTEO

        chosen_BTCE = jax.nn.one_hot(chosen_BTC, self.config.model.num_experts, dtype=x_BTD.dtype)
        hidden_BTEF = hidden_units(self.config, maps, x_BTD, multiply) * jnp.sum(chosen_BTCE, axis=2)[..., None]
        hidden_BTEF = tap(self, "hidden", hidden_BTEF)
        weight_BTE = jnp.einsum("BTC,BTCE->BTE", weight_BTC, chosen_BTCE)
        y_BTD = jnp.einsum("BTEF,EFD->BTD", hidden_BTEF * weight_BTE[..., None], maps["down"]["kernel"])
        return y_BTD + weight_BTE @ maps["down"]["bias"] if "bias" in maps["down"] else y_BTD


class Router(nn.Module):
    """How well each expert suits each token, in float32: small differences decide."""

    config: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Logits [B,T,E] float32."""
        model, (D, E) = self.config.model, (self.config.model.width, self.config.model.num_experts)
        dtype = jnp.dtype(model.param_dtype)
        kernel_DE = self.param("kernel", nn.initializers.normal(1 / math.sqrt(D)), (D, E), dtype)
        logits_BTE = jnp.einsum("BTD,DE->BTE", x_BTD.astype(jnp.float32), kernel_DE.astype(jnp.float32))
        if model.biases:
            bias_E = self.param("bias", nn.initializers.zeros, (E,), dtype)
            logits_BTE = logits_BTE + bias_E.astype(jnp.float32)[None, None]
        return logits_BTE


class ExpertMaps(nn.Module):
    """The linear maps of all experts."""

    config: Config

    @nn.compact
    def __call__(self) -> Maps:
        """`up`, `gate` (if gated) and `down`, in the dtype of computing."""
        config, D, F = self.config, self.config.model.width, feed_forward_width(self.config)
        maps = {"up": ExpertMap(config, D, F, name="up")()}
        if config.model.gated:
            maps["gate"] = ExpertMap(config, D, F, name="gate")()
        maps["down"] = ExpertMap(config, F, D, residual_gain(config), name="down")()
        return maps


class ExpertMap(nn.Module):
    """One linear map per expert."""

    config: Config
    inputs: int
    outputs: int
    gain: float = 1.0

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        """`kernel` [E, inputs, outputs] and, with biases, `bias` [E, outputs], in the dtype of computing."""
        model, E = self.config.model, self.config.model.num_experts
        normal, dtype = nn.initializers.normal(self.gain / math.sqrt(self.inputs)), jnp.dtype(model.param_dtype)
        weights = {"kernel": self.param("kernel", normal, (E, self.inputs, self.outputs), dtype)}
        if model.biases:
            weights["bias"] = self.param("bias", nn.initializers.zeros, (E, self.outputs), dtype)
        return {name: value.astype(model.dtype) for name, value in weights.items()}


def router_losses(
    logits_BTE: jax.Array, probability_BTE: jax.Array, chosen_BTC: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Load balancing and z-loss of each row, [B] float32 each, as sums over its real tokens.

    Balance: E sum_e f_e P_e, with f_e the choices of expert e per token and P_e its mean probability (Fedus et al.
    2021, section 2.2; f adds up to C, as in Mixtral), over the row, times its real tokens; C per token if even.
    z-loss: log(sum exp(logits))^2 (Zoph et al. 2022, section 3.1). `chosen_BTC` is E for padding.
    """
    E = logits_BTE.shape[-1]
    real_BT = (chosen_BTC[:, :, 0] < E).astype(jnp.float32)
    choices_BE = jnp.sum(jax.nn.one_hot(chosen_BTC, E, dtype=jnp.float32), axis=(1, 2))
    probability_BE = jnp.einsum("BTE,BT->BE", probability_BTE, real_BT)
    tokens_B = jnp.maximum(jnp.sum(real_BT, axis=1), 1.0)
    balance_B = E * jnp.sum(choices_BE * probability_BE, axis=-1) / tokens_B
    z_B = jnp.sum(jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1)) * real_BT, axis=1)
    return balance_B, z_B


def mixture(
    config: Config, maps: Maps, x_BTD: jax.Array, weight_BTC: jax.Array, chosen_BTC: jax.Array, limit: bool
) -> jax.Array:
    """The weighted sum of what each token's experts make of it, [B,T,D]; a choice of E is nobody.

    `limit`: an expert has room for so many tokens of a row only.

    On a mesh, each device keeps to its own rows and its own experts, and what its rows need from experts elsewhere
    travels along the axis `expert`.
    """
    of_rows = partial(limited if limit else dropless, config)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or x_BTD.shape[0] % math.prod(mesh.shape[axis] for axis in RULES["batch"]):
        return of_rows(maps, x_BTD, weight_BTC, chosen_BTC)

    def on_device(maps: Maps, x_BTD: jax.Array, weight_BTC: jax.Array, chosen_BTC: jax.Array) -> jax.Array:
        if "bias" in maps["down"]:  # Each of those who share the hidden units adds its part.
            bias = maps["down"]["bias"] / jax.lax.axis_size("tensor")
            maps = {**maps, "down": {**maps["down"], "bias": bias}}
        return jax.lax.psum(of_rows(maps, x_BTD, weight_BTC, chosen_BTC, spread=True), "tensor")

    def spec(name: str, kind: str) -> PartitionSpec:
        axes = parameter_axes(f"experts/{name}/{kind}")
        return partition(*("width" if axis == "embed" else axis for axis in axes))  # Gathered from `fsdp`.

    specs = {name: {kind: spec(name, kind) for kind in weights} for name, weights in maps.items()}
    rows = partition("batch")
    checked = ways("layers") == 1  # The check does not know that under a pipeline's vmap results have a stage.
    spread = jax.shard_map(on_device, in_specs=(specs, rows, rows, rows), out_specs=rows, check_vma=checked)
    return spread(maps, x_BTD, weight_BTC, chosen_BTC)


def feed_forward(config: Config, maps: Maps, x: jax.Array, multiply: Multiply) -> jax.Array:
    """What `FeedForward` computes, of tokens that `multiply` sends through the maps of their experts."""
    return checkpoint_name(multiply(hidden_units(config, maps, x, multiply), maps["down"]), "down")


def hidden_units(config: Config, maps: Maps, x: jax.Array, multiply: Multiply) -> jax.Array:
    """What stands between the maps up and down, of tokens that `multiply` sends through those of their experts."""
    activation = ACTIVATIONS[config.model.activation]
    hidden = checkpoint_name(multiply(x, maps["up"]), "up")
    if "gate" not in maps:
        return activation(hidden)
    return activation(checkpoint_name(multiply(x, maps["gate"]), "gate")) * hidden


def limited(
    config: Config, maps: Maps, x_BTD: jax.Array, weight_BTC: jax.Array, chosen_BTC: jax.Array, *, spread: bool = False
) -> jax.Array:
    """`mixture` where each expert has room for S tokens of a row, and drops those that come late in it.

    `spread` is to be set on one device of a mesh: places are exchanged there (Lepikhin et al. 2020, GShard).
    """
    (B, T, D), C, E = x_BTD.shape, chosen_BTC.shape[-1], config.model.num_experts
    S = min(T, math.ceil(config.model.expert_capacity * C * T / E))

    def place(chosen_N: jax.Array) -> jax.Array:
        rank_N, _ = ranks(chosen_N, E)
        return jnp.where((rank_N < S) & (chosen_N < E), chosen_N * S + rank_N, E * S)

    def multiply(x_BESI: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
        y_BESO = jnp.einsum("BESI,EIO->BESO", x_BESI, weights["kernel"])
        return y_BESO + weights["bias"][None, :, None] if "bias" in weights else y_BESO

    place_BN = jax.vmap(place)(chosen_BTC.reshape(B, T * C))
    x_BESD = jax.vmap(partial(to_places, places=E * S))(x_BTD, place_BN).reshape(B, E, S, D)
    if spread:
        x_BESD = jax.lax.all_to_all(x_BESD, "expert", split_axis=1, concat_axis=0, tiled=True)
    y_BESD = feed_forward(config, maps, x_BESD, multiply)
    if spread:
        y_BESD = jax.lax.all_to_all(y_BESD, "expert", split_axis=0, concat_axis=1, tiled=True)
    return jax.vmap(from_places)(y_BESD.reshape(B, E * S, D), place_BN, weight_BTC)


def dropless(
    config: Config, maps: Maps, x_BTD: jax.Array, weight_BTC: jax.Array, chosen_BTC: jax.Array, *, spread: bool = False
) -> jax.Array:
    """`mixture` where each expert takes all tokens that are sent to it (Gale et al. 2022, MegaBlocks).

    `spread` is to be set on one device of a mesh: those with different experts put their rows together there, and
    each computes what its own experts add to all of them.
    """
    E = maps["up"]["kernel"].shape[0]
    if spread:
        x_BTD, weight_BTC, chosen_BTC = (
            jax.lax.all_gather(x, "expert", tiled=True) for x in (x_BTD, weight_BTC, chosen_BTC)
        )
        chosen_BTC = chosen_BTC - jax.lax.axis_index("expert") * E
    (B, T, D), C = x_BTD.shape, chosen_BTC.shape[-1]
    chosen_N = chosen_BTC.reshape(-1)
    chosen_N = jnp.where((chosen_N >= 0) & (chosen_N < E), chosen_N, E)  # E has the choices of others and of nobody.
    groups = Groups.of(chosen_N, E, block_size(chosen_N.shape[0], E))
    x_PSD = to_places(x_BTD.reshape(-1, D), groups.place_N, groups.expert_P.shape[0] * groups.block)
    y_PSD = feed_forward(config, maps, x_PSD.reshape(-1, groups.block, D), groups.multiply)
    y_BTD = from_places(y_PSD.reshape(-1, D), groups.place_N, weight_BTC.reshape(-1, C)).reshape(B, T, D)
    return jax.lax.psum_scatter(y_BTD, "expert", tiled=True) if spread else y_BTD


def block_size(choices: int, experts: int) -> int:
    """How many places a block has, so that an expert's tokens begin at a multiple of it.

    On a CPU `ragged_dot` multiplies every token by every expert; blocks of tokens with one expert each are 4 times as
    fast (8 experts of 192 x 512, 4096 tokens). They should be neither small nor, for few tokens, mostly empty.
    """
    if platform() != "cpu":
        return 1
    return min(256, max(8, 1 << (choices // (2 * experts)).bit_length()))


@dataclass
class Groups:
    """Choices in order of their expert, each expert's padded to whole blocks; those of the expert E are left out."""

    place_N: jax.Array  # Where each choice stands, int32; beyond the last place if it is left out.
    places_E: jax.Array  # How many places each expert has, int32.
    expert_P: jax.Array  # Whose each block is, int32.
    block: int = field(pytree_node=False)

    @staticmethod
    def of(chosen_N: jax.Array, experts: int, block: int) -> Groups:
        """Group the choices `chosen_N`, int32 in 0..E."""
        N, E = chosen_N.shape[0], experts
        most = min(E, N)  # Experts with tokens, each of which leaves less than a block empty.
        P = (N + most * (block - 1)) // block
        rank_N, count_E = ranks(chosen_N, E)
        end_E = jnp.cumsum(-(-count_E // block)) * block
        places_E = jnp.diff(end_E, prepend=jnp.zeros_like(end_E[:1]))
        first_N = (end_E - places_E).at[chosen_N].get(mode="clip")
        expert_P = jnp.searchsorted(end_E, jnp.arange(P, dtype=jnp.int32) * block, side="right").astype(jnp.int32)
        return Groups(
            jnp.where(chosen_N < E, first_N + rank_N, P * block), places_E, jnp.minimum(expert_P, E - 1), block
        )

    def multiply(self, x_PSI: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
        """Each place through its expert's linear map, [P,S,inputs] to [P,S,outputs]."""
        kernel_EIO, (P, S, _) = weights["kernel"], x_PSI.shape
        if self.block > 1:
            y_PSO = jnp.einsum("PSI,PIO->PSO", x_PSI, kernel_EIO[self.expert_P])
        else:
            y_PSO = jax.lax.ragged_dot(x_PSI.reshape(P * S, -1), kernel_EIO, self.places_E).reshape(P, S, -1)
        return y_PSO + weights["bias"][self.expert_P][:, None] if "bias" in weights else y_PSO


def ranks(chosen_N: jax.Array, experts: int) -> tuple[jax.Array, jax.Array]:
    """How many choices before each are of the same expert [N], and how many there are of each [E], both int32.

    `chosen_N` is int32 in 0..E; E is no expert.
    """
    order_N = jnp.argsort(chosen_N, stable=True)
    count_E = jnp.zeros(experts + 1, jnp.int32).at[chosen_N].add(1)
    first_E = jnp.cumsum(count_E) - count_E
    number_N = jnp.arange(chosen_N.shape[0], dtype=jnp.int32)
    return jnp.zeros_like(number_N).at[order_N].set(number_N - first_E[chosen_N[order_N]]), count_E[:-1]


def to_places(x_MD: jax.Array, place_N: jax.Array, places: int) -> jax.Array:
    """The tokens [M,D] at the places of their choices [places, D]; 0 where nobody stands."""
    M, N = x_MD.shape[0], place_N.shape[0]
    token_N = jnp.arange(N, dtype=jnp.int32) // (N // M)
    token_P = jnp.full(places, M, jnp.int32).at[place_N].set(token_N, mode="drop")
    return x_MD.at[token_P].get(mode="fill", fill_value=0)


def from_places(y_PD: jax.Array, place_N: jax.Array, weight_MC: jax.Array) -> jax.Array:
    """The weighted sum [M,D] of what stands at the places of each token's choices; 0 of those that were left out."""
    y_MCD = y_PD.at[place_N].get(mode="fill", fill_value=0).reshape(*weight_MC.shape, -1)
    return jnp.einsum("MCD,MC->MD", y_MCD, weight_MC)
