"""Attention whose past is a matrix of fixed size: tokens are read in chunks, within which all is computed at once.

A chunk reads from the state before it and from its own tokens, then writes to the state (Yang et al. 2023, section 2;
for the delta rule Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule", section 3, and "Gated
Delta Networks", section 3.3). Everything is float32.

Shapes: B batch, T length, N heads, H head width, V value width; c chunks of C tokens each.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax.struct import dataclass

CHUNK = 64  # Tokens; a power of two.


@dataclass
class Chunks:
    """What is known of each chunk before the state is: matrices [c,B,N,...], float32."""

    read: jax.Array  # [C,H] What each token reads from the state before its chunk.
    weights: jax.Array  # [C,C] What it reads from what the chunk's tokens write.
    written: jax.Array  # [C,V] What each token writes if the state is empty.
    erased: jax.Array | None  # [C,H] What it reads from the state before its chunk, to write so much less.
    keys: jax.Array  # [C,H] Under what each token is found in the state after the chunk.
    kept: jax.Array  # [1,1] What is left of the state before the chunk.


def linear_rule(
    query_BTNH: jax.Array, key_BTNH: jax.Array, value_BTNV: jax.Array, begins_BT: jax.Array, state_BNHV: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """S_t = S_{t-1} + k_t v_t^T, read by q_t: what is read [B,T,N,V], and the last state [B,N,H,V], both float32.

    Where `begins_BT` is True, S_{t-1} counts as 0. A token with a key of 0 changes nothing.
    """
    T = query_BTNH.shape[1]
    query, key, value = (_split(x, chunk_length(T)) for x in (query_BTNH, key_BTNH, value_BTNV))
    text = _texts(begins_BT, chunk_length(T))
    chunks = Chunks(
        read=query * _before(text),
        weights=jnp.einsum("...ih,...jh->...ij", query, key) * _same(text).astype(jnp.float32),
        written=value,
        erased=None,
        keys=key * _last(text),
        kept=_before(text)[..., -1:, :],
    )
    return _run(chunks, state_BNHV, T)


def delta_rule(
    query_BTNH: jax.Array,
    key_BTNH: jax.Array,
    value_BTNV: jax.Array,
    strength_BTN: jax.Array,
    log_decay_BTN: jax.Array,
    begins_BT: jax.Array,
    state_BNHV: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, read by q_t; results as of `linear_rule`.

    What is found under the key is replaced by the value, as far as the strength b says; the rest fades by a.
    Yang et al. 2024 (Gated DeltaNet), equation 10, with the state transposed.

    Args:
      query_BTNH, key_BTNH, value_BTNV: keys have length 1.
      strength_BTN: b, in 0..1. With 0, and a log decay of 0, a token changes nothing.
      log_decay_BTN: log a, at most 0.
      begins_BT: True where S_{t-1} counts as 0.
      state_BNHV: the state before the first token.
    """
    T, C = query_BTNH.shape[1], chunk_length(query_BTNH.shape[1])
    query, key, value = (_split(x, C) for x in (query_BTNH, key_BTNH, value_BTNV))
    strength, log_decay = (_split(x[..., None], C) for x in (strength_BTN, log_decay_BTN))
    text = _texts(begins_BT, C)
    faded = jnp.cumsum(log_decay, axis=-2)
    weights, solve = _delta_matrices(query, key, strength, faded, text)
    since_start, until_end = jnp.exp(faded) * _before(text), jnp.exp(faded[..., -1:, :] - faded) * _last(text)
    chunks = Chunks(
        read=query * since_start,
        weights=weights,
        written=solve @ (strength * value),
        erased=solve @ (strength * key * since_start),
        keys=key * until_end,
        kept=since_start[..., -1:, :],
    )
    return _run(chunks, state_BNHV, T)


def linear_weights(query_BTNH: jax.Array, key_BTNH: jax.Array, begins_BT: jax.Array) -> jax.Array:
    """How much of each token's value `linear_rule` reads at each token, [B,N,T,T] float32, from an empty state."""
    same = _same(_texts(begins_BT, begins_BT.shape[1]))[0]
    return jnp.einsum("BTNH,BSNH->BNTS", query_BTNH, key_BTNH) * same.astype(jnp.float32)


def delta_weights(
    query_BTNH: jax.Array,
    key_BTNH: jax.Array,
    strength_BTN: jax.Array,
    log_decay_BTN: jax.Array,
    begins_BT: jax.Array,
) -> jax.Array:
    """How much of each token's value `delta_rule` reads at each token, [B,N,T,T] float32; may be below 0."""
    T, C = begins_BT.shape[1], _power_of_two(begins_BT.shape[1])
    query, key = (_split(x, C) for x in (query_BTNH, key_BTNH))
    strength, log_decay = (_split(x[..., None], C) for x in (strength_BTN, log_decay_BTN))
    weights, solve = _delta_matrices(query, key, strength, jnp.cumsum(log_decay, axis=-2), _texts(begins_BT, C))
    return (weights @ solve * strength.mT)[0, :, :, :T, :T]


def _delta_matrices(
    query: jax.Array, key: jax.Array, strength: jax.Array, faded: jax.Array, text: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What a token reads from what tokens of its chunk write, and what they write for each value; each [c,B,N,C,C].

    A token writes its value less what is found under its key, which depends on what those before it wrote: a triangular
    system, whose inverse is the second result.
    """
    # Masked before exp: where a later token would be read, its decay would be a growth without bound.
    decay = jnp.exp(jnp.where(_same(text), faded - faded.mT, -jnp.inf))
    found = jnp.tril(strength * (key @ key.mT) * decay, -1)
    return (query @ key.mT) * decay, invert_unit_triangular(found)


@jax.custom_vjp
def invert_unit_triangular(below: jax.Array) -> jax.Array:
    """(I + below)^-1 of strictly lower triangular matrices [..., C, C], with C a power of two.

    Pairs of inverted blocks on the diagonal become blocks of twice the size, all by products of matrices: on a CPU 2
    (both ways) to 5 times as fast as solving with `jax.lax.linalg.triangular_solve`, and rounded as well.
    """
    *lead, C, _ = below.shape
    # With C numbers more, what belongs to each pair has its place in a row of a matrix: no gathering, fast to compile.
    flat = jnp.pad(below.reshape(*lead, C * C), (*((0, 0) for _ in lead), (0, C)))
    inverse = jnp.ones((*lead, C, 1, 1), below.dtype)
    size = 1
    while size < C:
        pairs = flat.reshape(*lead, C // (2 * size), 2 * size * (C + 1))[..., size * C : 2 * size * C]
        corner = pairs.reshape(*lead, C // (2 * size), size, C)[..., :size]
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -(second @ corner @ first)
        inverse = jnp.concatenate(
            [jnp.concatenate([first, jnp.zeros_like(first)], -1), jnp.concatenate([corner, second], -1)], -2
        )
        size *= 2
    return inverse[..., 0, :, :]


def _invert_forward(below: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse = invert_unit_triangular(below)
    return inverse, inverse


def _invert_backward(inverse: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (-(inverse.mT @ gradient @ inverse.mT),)


invert_unit_triangular.defvjp(_invert_forward, _invert_backward)


def _run(chunks: Chunks, state_BNHV: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """What is read [B,T,N,V] by the first `length` tokens, and the last state."""

    def step(state: jax.Array, chunk: Chunks) -> tuple[jax.Array, jax.Array]:
        written = chunk.written if chunk.erased is None else chunk.written - chunk.erased @ state
        read = chunk.read @ state + chunk.weights @ written
        return chunk.kept * state + chunk.keys.mT @ written, read

    state_BNHV, read = jax.lax.scan(step, state_BNHV, chunks)
    c, B, N, C, V = read.shape
    return read.transpose(1, 0, 3, 2, 4).reshape(B, c * C, N, V)[:, :length], state_BNHV


def chunk_length(length: int) -> int:
    """Tokens in a chunk of a text of `length`; one token at a time is the recurrence itself."""
    return min(CHUNK, _power_of_two(length))


def _power_of_two(length: int) -> int:
    """The next one."""
    return 1 << (length - 1).bit_length()


def _split(x_BTNH: jax.Array, length: int) -> jax.Array:
    """Chunks [c,B,N,C,H]; behind the end, zeros."""
    B, T, N, H = x_BTNH.shape
    x_BTNH = jnp.pad(x_BTNH, ((0, 0), (0, -T % length), (0, 0), (0, 0)))
    return x_BTNH.reshape(B, -1, length, N, H).transpose(1, 0, 3, 2, 4)


def _texts(begins_BT: jax.Array, length: int) -> jax.Array:
    """How many texts began in the chunk so far, [c,B,1,C,1] int32."""
    return jnp.cumsum(_split(begins_BT[:, :, None, None].astype(jnp.int32), length), axis=-2)


def _same(text: jax.Array) -> jax.Array:
    """Whether one token belongs to another's text and is not later, [c,B,1,C,C] bool."""
    C = text.shape[-2]
    return (text == text.mT) & jnp.tril(jnp.ones((C, C), bool))[None, None, None]


def _before(text: jax.Array) -> jax.Array:
    """1 for tokens of the text that the chunk begins in, else 0, [c,B,1,C,1] float32."""
    return (text == 0).astype(jnp.float32)


def _last(text: jax.Array) -> jax.Array:
    """1 for tokens of the text that the chunk ends in, else 0, [c,B,1,C,1] float32."""
    return (text == text[..., -1:, :]).astype(jnp.float32)
