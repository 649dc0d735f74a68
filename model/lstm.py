"""Recurrence: long short-term memory (Hochreiter & Schmidhuber 1997), and a language model made of it.

The equations, the parameters and their names are those of Flax's `nn.OptimizedLSTMCell`; see `Recurrence` for why its
loop over time is written here.

Shapes: B batch, T length, D width of the input, H width of the state, G = 4H the gates side by side, V vocabulary,
L layers.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.recurrent import DenseParams
from jax.ad_checkpoint import checkpoint_name

from configs.schema import Config
from model.layers import Dropout
from model.lens.places import EDITS, INTERMEDIATES, Edit, edited, looked_at, tap
from model.remat import LAYER_INPUT, rematerialized
from model.sharding import constrain
from model.source import Source
from model.transformer import Embedding, begins_and_real, embed, or_default, to_logits

GATES = {"i": "input", "f": "forget", "g": "cell", "o": "output"}  # Flax's name of each, and what it is recorded as.
Weights = tuple[jax.Array, jax.Array, jax.Array]  # Kernels for the input [D,G] and the hidden state [H,G], bias [G].
State = tuple[jax.Array, jax.Array]  # The cell, float32, since it adds up over time, and the hidden state.


class LSTM(nn.Module):
    """A language model with recurrence in place of attention: what a token knows of the text is a state of fixed size.

    Each layer reads the hidden states of the one below (Graves 2013, without its skip connections), with dropout
    between layers and never over time (Zaremba et al. 2014).
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
        """Logits [B,T,V] float32; the arguments are those of `Decoder`.

        The state starts anew at position 0 and passes over tokens of segment 0; with a `cache` it goes on from there.

        Raises:
          ValueError: a source.
        """
        if source is not None:
            raise ValueError(f"A network of the kind {self.config.model.network} has no source to read.")
        config = self.config
        positions_BT, rows_B = or_default(tokens_BT, positions_BT, rows_B)
        begins_BT, real_BT = begins_and_real(positions_BT, segments_BT)
        tokens = Embedding(config, config.tokenizer.vocab_size, name="embedding")
        x_BTD = tap(self, "embedded", embed(config, tokens, tokens_BT, positions_BT))
        x_BTD = Dropout(config.model.dropout, deterministic)(x_BTD, rows_B)
        layers = stacked(Layer, config, config.model.num_layers)(config, deterministic, name="layers")
        x_BTD, _ = layers(x_BTD, None, begins_BT, real_BT, rows_B)
        x_BTD = tap(self, "final", x_BTD)
        return to_logits(config, tokens, x_BTD) if head else x_BTD


class Layer(nn.Module):
    """One layer of recurrence, from left to right."""

    config: Config
    deterministic: bool

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, start: State | None, begins_BT: jax.Array, real_BT: jax.Array, rows_B: jax.Array
    ) -> tuple[jax.Array, None]:
        """Map [B,T,D] to the hidden states [B,T,D], in the form that `nn.scan` takes (carry, no output)."""
        model, x_BTD = self.config.model, checkpoint_name(x_BTD, LAYER_INPUT)
        _, x_BTD = Recurrence(self.config, model.width, name="lstm")(x_BTD, begins_BT, real_BT, start)
        x_BTD = tap(self, "residual/after", x_BTD)
        return Dropout(model.dropout, self.deterministic)(x_BTD, rows_B), None


def stacked(layer: Any, config: Config, num_layers: int) -> Any:
    """`num_layers` of the class `layer` as one, with parameters stacked on a leading axis, looped over or unrolled.

    Its second argument, and what it returns beside the carry, has a leading layer axis; the other arguments are shared.
    """
    return nn.scan(
        rematerialized(layer, config),
        variable_axes={"params": 0, "cache": 0, INTERMEDIATES: 0, EDITS: 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=cast(Any, (0, nn.broadcast, nn.broadcast, nn.broadcast)),
        length=num_layers,
        unroll=num_layers if config.model.layers == "unroll" else 1,
    )


class Recurrence(nn.Module):
    """The loop of one LSTM over time.

    Flax's own loop (`nn.RNN`) adds up the gradients of the kernels in every step; here each step hands out the gradient
    of its gates, from which one matrix product for each kernel makes them afterwards. Training takes about 1 / 1.3 of
    the CPU time. (To compute what comes from below before the loop, as is usual, gained nothing on a CPU.)

    The forget gate's bias starts at 1, so that a state is kept until learning says otherwise (Gers et al. 2000,
    Jozefowicz et al. 2015). Recurrent kernels start as the others do, and not orthogonal as Flax's: compiling the
    factorization of each takes seconds. On a mesh the gates of a row are computed on one device: a step is too small
    to be shared.
    """

    config: Config
    width: int  # H
    reverse: bool = False  # From right to left.

    @nn.compact
    def __call__(self, x_BTD: jax.Array, begins_BT: jax.Array, real_BT: jax.Array, start: State | None = None) -> State:
        """Cells [B,T,H] float32 and hidden states [B,T,H] after each token.

        Args:
          x_BTD: what is read.
          begins_BT: True for the first token of a text in the direction of reading: the state is `start` before it.
          real_BT: False for padding, which leaves the state as it is.
          start: a state for each token that may be the first, each [B,T,H]; None is zeros.
        """
        # Time leads: the loop goes over it.
        start = None if start is None else (start[0].swapaxes(0, 1), start[1].swapaxes(0, 1))
        reads = x_BTD.swapaxes(0, 1), start, begins_BT.T, real_BT.T
        weights, before = self.weights(x_BTD), self.before(x_BTD)
        if any(looked_at(self, name) for name in GATES.values()):
            edits_TB = self.edits(*x_BTD.shape[:2])
            states, (sums_TBG, _) = _loop(self.reverse, weights, before, *reads, edits_TB)
            for name, gate_TBH in zip(GATES.values(), _gates(sums_TBG), strict=True):
                tap(self, name, gate_TBH.swapaxes(0, 1))
        else:
            states = cast(State, recur(self.reverse, weights, before, *reads))
        cells_BTH = constrain(states[0].swapaxes(0, 1), "batch", "length", "width")
        hidden_BTH = constrain(states[1].swapaxes(0, 1), "batch", "length", "width")
        if self.has_variable("cache", "hidden"):
            # Padding has kept it, so the last state is that of the last real token.
            self.put_variable("cache", "cell", cells_BTH[:, -1])
            self.put_variable("cache", "hidden", hidden_BTH[:, -1])
        return cells_BTH, hidden_BTH

    def edits(self, B: int, T: int) -> list[Edit] | None:
        """What becomes of each gate, [T,B,H], if any of them is changed."""
        if not any(edited(self, name) for name in GATES.values()):
            return None
        nothing = Edit(jnp.ones((1, 1, 1)), jnp.zeros((1, 1, 1)))
        edits = [self.get_variable(EDITS, name, nothing) for name in GATES.values()]
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (B, T, self.width)).swapaxes(0, 1), edits)

    def weights(self, x_BTD: jax.Array) -> Weights:
        """All gates' parameters side by side, in the computing dtype."""
        dtype, param_dtype = jnp.dtype(self.config.model.dtype), jnp.dtype(self.config.model.param_dtype)
        kernels_DH, kernels_HH, biases_H = [], [], []
        for gate in GATES:
            dense = partial(DenseParams, self.width, param_dtype=param_dtype)
            kernel_DH, _ = dense(use_bias=False, name=f"i{gate}")(x_BTD)
            bias_init = nn.initializers.ones if gate == "f" else nn.initializers.zeros
            state_H = jax.ShapeDtypeStruct((self.width,), dtype)
            kernel_HH, bias_H = dense(bias_init=bias_init, name=f"h{gate}")(state_H)
            kernels_DH.append(kernel_DH)
            kernels_HH.append(kernel_HH)
            biases_H.append(bias_H)
        kernel_DG, kernel_HG = (jnp.concatenate(kernels, axis=1) for kernels in (kernels_DH, kernels_HH))
        # Gather what is spread over the width once, not in every step.
        kernel_DG, kernel_HG = (constrain(x.astype(dtype), "width", "width") for x in (kernel_DG, kernel_HG))
        return kernel_DG, kernel_HG, jnp.concatenate(biases_H).astype(dtype)

    def before(self, x_BTD: jax.Array) -> State:
        """The state [B,H] before the first token: the cache's, or zeros."""
        if self.has_variable("cache", "hidden"):
            return self.get_variable("cache", "cell"), self.get_variable("cache", "hidden")
        shape = (x_BTD.shape[0], self.width)
        return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, self.config.model.dtype)


def _gates(sums_BG: jax.Array) -> list[jax.Array]:
    """Input, forget, cell and output gate, each [...,H] float32, of what enters them [...,G]."""
    i, f, g, o = jnp.split(sums_BG.astype(jnp.float32), 4, axis=-1)
    return [jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)]


def _cell(sums_BG: jax.Array, state: State, real_B: jax.Array, edits_B: list[Edit] | None = None) -> State:
    """The next state; padding keeps the one before."""
    gates = _gates(sums_BG)
    if edits_B is not None:
        gates = [gate_BH * edit.keep + edit.add for gate_BH, edit in zip(gates, edits_B, strict=True)]
    i_BH, f_BH, g_BH, o_BH = gates
    cell_BH = f_BH * state[0] + i_BH * g_BH
    hidden_BH = (o_BH * jnp.tanh(cell_BH)).astype(state[1].dtype)
    return _where(real_B, (cell_BH, hidden_BH), state)


def _where(choice_B: jax.Array, this: State, other: State | None) -> State:
    """For each row `this` where chosen, else `other`; None is zeros."""
    other = other or (jnp.zeros_like(this[0]), jnp.zeros_like(this[1]))
    return jnp.where(choice_B[:, None], this[0], other[0]), jnp.where(choice_B[:, None], this[1], other[1])


def _loop(
    reverse: bool,
    weights: Weights,
    before: State,
    x_TBD: jax.Array,
    start: State | None,
    begins_TB: jax.Array,
    real_TB: jax.Array,
    edits_TB: list[Edit] | None = None,
) -> tuple[State, tuple[jax.Array, State]]:
    """States [T,B,H] after each step; and what entered its gates [T,B,G], and the state before it."""
    kernel_DG, kernel_HG, bias_G = weights

    def step(state: State, now: tuple[Any, ...]) -> tuple[State, tuple[State, tuple[jax.Array, State]]]:
        x_BD, start, begins_B, real_B, edits_B = now
        state = _where(~begins_B, state, start)
        sums_BG = x_BD @ kernel_DG + state[1] @ kernel_HG + bias_G[None]
        after = _cell(sums_BG, state, real_B, edits_B)
        return after, (after, (sums_BG, state))

    return jax.lax.scan(step, before, (x_TBD, start, begins_TB, real_TB, edits_TB), reverse=reverse)[1]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(
    reverse: bool,
    weights: Weights,
    before: State,
    x_TBD: jax.Array,
    start: State | None,
    begins_TB: jax.Array,
    real_TB: jax.Array,
) -> State:
    """States [T,B,H] after each step, differentiable backwards only; the arguments are those of `_loop`."""
    return _loop(reverse, weights, before, x_TBD, start, begins_TB, real_TB)[0]


def _recur_forward(reverse: bool, *arguments: Any) -> tuple[State, tuple[Any, ...]]:
    states, seen = checkpoint_name(_loop(reverse, *arguments), "gates")
    return states, (seen, *arguments)


def _recur_backward(reverse: bool, kept: tuple[Any, ...], d_states: State) -> tuple[Any, ...]:
    (sums_TBG, states), (kernel_DG, kernel_HG, _), _, x_TBD, start, begins_TB, real_TB = kept
    kernel_GH = kernel_HG.T  # Once, and not in every step.

    def step(d_state: State, now: tuple[Any, ...]) -> tuple[State, tuple[jax.Array, State | None]]:
        d_after, sums_BG, state, begins_B, real_B = now
        d_after = (d_state[0] + d_after[0], d_state[1] + d_after[1])
        _, pull = jax.vjp(lambda sums_BG, state: _cell(sums_BG, state, real_B), sums_BG, state)
        d_sums_BG, (d_cell_BH, d_hidden_BH) = pull(d_after)
        d_state = (d_cell_BH, d_hidden_BH + d_sums_BG @ kernel_GH)
        d_start = None if start is None else _where(begins_B, d_state, None)
        return _where(~begins_B, d_state, None), (d_sums_BG, d_start)

    nothing = (jnp.zeros_like(d_states[0][0]), jnp.zeros_like(d_states[1][0]))
    over = (d_states, sums_TBG, states, begins_TB, real_TB)
    d_before, (d_sums_TBG, d_start) = jax.lax.scan(step, nothing, over, reverse=not reverse)
    d_kernel_DG, d_kernel_HG = (jnp.tensordot(x, d_sums_TBG, ((0, 1), (0, 1))) for x in (x_TBD, states[1]))
    d_weights = d_kernel_DG, d_kernel_HG, jnp.sum(d_sums_TBG, (0, 1))
    return d_weights, d_before, d_sums_TBG @ kernel_DG.T, d_start, None, None


recur.defvjp(_recur_forward, _recur_backward)


def empty_cache(config: Config, rows: int, source_slots: int = 0) -> Any:
    """A `cache` collection for `rows` texts of any length: the state of each layer, cells and hidden [L, rows, D].

    A network that translates also keeps the encoded source, [rows, source_slots, D], as values, and as keys in the
    form that states are compared with.
    """
    model = config.model
    shape = (model.num_layers, rows, model.width)
    state = {"cell": jnp.zeros(shape, jnp.float32), "hidden": jnp.zeros(shape, model.dtype)}
    cache: dict[str, Any] = {"layers": {"lstm": state}}
    if model.network == "lstm_encoder_decoder":
        memory = (rows, source_slots, model.width)
        cache["alignment"] = {name: jnp.zeros(memory, model.dtype) for name in ("key", "value")}
        cache["source_segments"] = jnp.zeros((rows, source_slots), jnp.int32)
    return cache
