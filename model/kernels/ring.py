"""Attention block by block, over a row that several devices share: no device ever has a matrix [T,S].

Each device holds a part of the row's queries, keys and values. The parts of keys and values go around the ring of
devices, and each device adds what its queries read from the part that it has at the moment to a running softmax (Liu et
al. 2023, "Ring Attention with Blockwise Transformers"; the running softmax and its gradient: Dao et al. 2022,
"FlashAttention"). On one device the ring has one part, and what remains is attention block by block.

A causal model's late queries see more than its early ones. So the row is cut into two parts per device, and device j of
n works on the parts j and 2n-1-j, which together see as much as any other such pair (zigzag; Brandon et al. 2023,
"Striped Attention", balances in another order for the same reason). Blocks in which nobody sees anybody are skipped.

Shapes: B batch, T query length, S key length, N heads, K key/value heads, G query heads for each of them, H head width;
t and s are the lengths of one block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from model.masks import Sight
from model.remat import ATTENTION
from model.sharding import partition, ways

AXIS = "sequence"  # The mesh axis that shares the row.
BLOCK = 512  # Longest block of queries and of keys.
LOWEST = -1e30  # Below every score. Not -inf: the difference of two of them is NaN.


class Settings(NamedTuple):
    """What is known when the program is compiled."""

    scale: float
    softcap: float
    causal: bool
    devices: int  # That share the row.


class Running(NamedTuple):
    """The softmax over the keys that were seen so far, float32."""

    read_BKGTH: jax.Array  # Sum of exp(score - highest) * value.
    highest_BKGT: jax.Array
    total_BKGT: jax.Array  # Sum of exp(score - highest).


class Keys(NamedTuple):
    """What goes around the ring."""

    key_BSKH: jax.Array
    value_BSKH: jax.Array
    position_BS: jax.Array
    segment_BS: jax.Array


class Queries(NamedTuple):
    """What stays on its device."""

    query_BTKGH: jax.Array
    position_BT: jax.Array
    segment_BT: jax.Array
    window: jax.Array  # int32 scalar, 0 for none.
    slopes_KG: jax.Array  # ALiBi's, float32; zeros for none.


def ring(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    sight: Sight,
    *,
    scale: float,
    window: jax.Array | int = 0,
    softcap: float = 0.0,
    slopes_N: jax.Array | None = None,
    sinks_N: jax.Array | None = None,
    gather: bool = False,
) -> jax.Array:
    """The output of `dense` without its weights, [B,T,N,H of the values]; a query that sees nothing reads 0.

    Args:
      sight: who may look at whom; parts of it are compared, so it is never a matrix.
      window: int32 scalar, how far a token sees; 0 is no window.
      slopes_N: ALiBi's penalty on distance per head, a constant.
      gather: bring all keys and values of a row to each of its devices instead of sending them around: fewer and larger
        messages, and S keys in the memory of each, which suits short rings.

    Under a mesh rows, heads and length lie as `model.sharding.RULES` says, which has to divide them.
    """
    N, K = query_BTNH.shape[2], key_BSKH.shape[2]
    settings = Settings(scale, softcap, sight.causal, ways("length"))
    slopes_N = jnp.zeros(N, jnp.float32) if slopes_N is None else slopes_N
    sinks_N = jnp.full(N, LOWEST, jnp.float32) if sinks_N is None else sinks_N.astype(jnp.float32)
    segments = sight.segments or (jnp.ones_like(sight.query_BT), jnp.ones_like(sight.key_BS))

    def local(query_BTNH: jax.Array, *rest: jax.Array) -> jax.Array:
        position_BT, segment_BT, window, slopes_N, sinks_N, *keys = rest
        heads = (keys[0].shape[2], N // K)
        query_BTKGH = query_BTNH.reshape(*query_BTNH.shape[:2], *heads, -1)
        queries = Queries(query_BTKGH, position_BT, segment_BT, window, slopes_N.reshape(heads))
        read_BTKGH = _local(queries, Keys(*keys), sinks_N.reshape(heads), settings, gather)
        return read_BTKGH.reshape(*query_BTNH.shape[:3], -1)

    if not jax.sharding.get_abstract_mesh().empty:
        rows, places = partition("batch", "length", "heads", "head"), partition("batch", "length")
        heads = partition("heads")
        specs = (rows, places, places, PartitionSpec(), heads, heads, rows, rows, places, places)
        local = jax.shard_map(local, in_specs=specs, out_specs=rows, check_vma=False)
    return local(
        query_BTNH, sight.query_BT, segments[0], jnp.asarray(window, jnp.int32), slopes_N, sinks_N,
        key_BSKH, value_BSKH, sight.key_BS, segments[1],
    )  # fmt: skip


def _local(queries: Queries, keys: Keys, sinks_KG: jax.Array, settings: Settings, gather: bool) -> jax.Array:
    """What one device does: [B,T,K,G,H] for the queries that it was given."""
    n, window, slopes_KG = settings.devices, queries.window, queries.slopes_KG
    balances = n > 1 and settings.causal and queries.position_BT.shape[1] % 2 == 0
    if balances:
        query_BTKGH, position_BT, segment_BT = (_zigzag(x, n) for x in queries[:3])
        queries = Queries(query_BTKGH, position_BT, segment_BT, window, slopes_KG)
    if gather and n > 1:
        keys = Keys(*(jax.lax.all_gather(x, AXIS, axis=1, tiled=True) for x in keys))
        settings = settings._replace(devices=1)
    elif balances:
        keys = Keys(*(_zigzag(x, n) for x in keys))
    read_BTKGH: Any = _attend(settings, queries, keys, sinks_KG)
    return _straight(read_BTKGH, n) if balances else read_BTKGH


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings: Settings, queries: Queries, keys: Keys, sinks_KG: jax.Array) -> jax.Array:
    return _attend_forward(settings, queries, keys, sinks_KG)[0]


def _attend_forward(settings: Settings, queries: Queries, keys: Keys, sinks_KG: jax.Array) -> Any:
    """What is read, and what the gradient needs: of the weights only the logarithm of each row's sum."""
    kept = queries, keys, sinks_KG
    # A loop over layers would compute what depends on positions alone once, for all blocks: a matrix [T,S] after all.
    queries, keys = jax.lax.optimization_barrier((queries, keys))
    B, T, K, G, _ = queries.query_BTKGH.shape
    highest_BKGT = jnp.broadcast_to(sinks_KG[None, :, :, None], (B, K, G, T))
    total_BKGT = jnp.where(highest_BKGT > LOWEST, 1.0, 0.0)  # A sink is a key that was seen before all others.
    read_BKGTH = jnp.zeros((B, K, G, T, keys.value_BSKH.shape[-1]), jnp.float32)

    def add(running: Running, keys: Keys) -> Running:
        return _read_block_by_block(settings, queries, keys, running)

    running = Running(read_BKGTH, highest_BKGT, total_BKGT)
    running = _around(settings.devices, lambda keys, running: (keys, add(running, keys)), keys, running)
    total_BKGT = jnp.where(running.total_BKGT == 0, 1.0, running.total_BKGT)
    read_BTKGH = jnp.moveaxis(running.read_BKGTH / total_BKGT[..., None], 3, 1).astype(keys.value_BSKH.dtype)
    # Where these are kept, the backward pass does not go through all blocks twice.
    read_BTKGH = checkpoint_name(read_BTKGH, ATTENTION)
    log_total_BKGT = checkpoint_name(running.highest_BKGT + jnp.log(total_BKGT), ATTENTION)
    return read_BTKGH, (*kept, read_BTKGH, log_total_BKGT)


def _attend_backward(settings: Settings, kept: Any, d_read_BTKGH: jax.Array) -> Any:
    """Gradients of queries, keys, values and sinks; those of keys go around the ring beside them, and come home."""
    queries, keys, sinks_KG, read_BTKGH, log_total_BKGT = kept
    product_BTKG = jnp.sum(d_read_BTKGH.astype(jnp.float32) * read_BTKGH.astype(jnp.float32), -1)
    along_BKGT = jnp.moveaxis(product_BTKG, 1, 3)  # Part of a score's gradient that all keys share.
    rows = (jnp.moveaxis(d_read_BTKGH, 1, 3), log_total_BKGT, along_BKGT)

    def add(moving: Any, d_query_BTKGH: jax.Array) -> Any:
        keys, d_key_BSKH, d_value_BSKH = moving
        return _gradients_block_by_block(settings, queries, keys, rows, (d_query_BTKGH, d_key_BSKH, d_value_BSKH))

    def visit(moving: Any, d_query_BTKGH: jax.Array) -> Any:
        d_query_BTKGH, *d_keys = add(moving, d_query_BTKGH)
        return (moving[0], *d_keys), d_query_BTKGH

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (queries.query_BTKGH, *keys[:2])]
    if settings.devices == 1:
        (_, d_key_BSKH, d_value_BSKH), d_query_BTKGH = visit((keys, *zeros[1:]), zeros[0])
    else:

        def step(state: Any, _: None) -> Any:
            moving, stays = visit(*state)
            return (_pass_on(moving, settings.devices), stays), None

        start = ((keys, *zeros[1:]), zeros[0])
        ((_, d_key_BSKH, d_value_BSKH), d_query_BTKGH), _ = jax.lax.scan(step, start, length=settings.devices)
    sinks_1KG1 = sinks_KG[None, :, :, None]
    weight_BKGT = jnp.where(sinks_1KG1 > LOWEST, jnp.exp(sinks_1KG1 - log_total_BKGT), 0.0)
    d_sinks_KG = -jnp.sum(weight_BKGT * along_BKGT, (0, 3))
    d_queries = Queries(d_query_BTKGH.astype(queries.query_BTKGH.dtype), None, None, None, jnp.zeros_like(queries[4]))  # type: ignore[arg-type]
    d_keys = Keys(d_key_BSKH.astype(keys[0].dtype), d_value_BSKH.astype(keys[1].dtype), None, None)  # type: ignore[arg-type]
    return d_queries, d_keys, d_sinks_KG


_attend.defvjp(_attend_forward, _attend_backward)


def _around(devices: int, visit: Callable[[Any, Any], tuple[Any, Any]], moving: Any, stays: Any) -> Any:
    """`visit(moving, stays)` on every part that comes by, `moving` sent on in between; what stays."""

    def step(state: Any, _: None) -> Any:
        moving, stays = state
        sent = _pass_on(moving, devices)  # On its way while this part is worked on.
        return (sent, visit(moving, stays)[1]), None

    if devices > 1:
        (moving, stays), _ = jax.lax.scan(step, (moving, stays), length=devices - 1)
    return visit(moving, stays)[1]


def _pass_on(tree: Any, devices: int) -> Any:
    to_next = [(device, (device + 1) % devices) for device in range(devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, to_next), tree)


def _scores(settings: Settings, queries: Queries, keys: Keys) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of one block: scores [B,K,G,t,s] float32, the soft-cap's derivative there, and visible [B,1,1,t,s]."""
    query_BtKGH = queries.query_BTKGH * jnp.asarray(settings.scale, queries.query_BTKGH.dtype)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", query_BtKGH, keys.key_BSKH, preferred_element_type=jnp.float32)
    slope = jnp.ones((), jnp.float32)
    if settings.softcap:
        scores = settings.softcap * jnp.tanh(scores / settings.softcap)
        slope = 1 - jnp.square(scores / settings.softcap)
    sight = _sight(settings, queries, keys)
    far_BTS = jnp.abs(sight.distance()).astype(jnp.float32)
    scores = scores - queries.slopes_KG[None, :, :, None, None] * far_BTS[:, None, None]
    return scores, slope, sight.visible(queries.window)[:, None, None]


def _sight(settings: Settings, queries: Queries, keys: Keys) -> Sight:
    places = (queries.position_BT, keys.position_BS, queries.segment_BT, keys.segment_BS)
    return Sight(*places, causal=settings.causal)


def _sees(settings: Settings, queries: Queries, keys: Keys) -> jax.Array:
    """Whether anybody in a block sees anybody."""
    return jnp.any(_sight(settings, queries, keys).visible(queries.window))


def _read_block_by_block(settings: Settings, queries: Queries, keys: Keys, running: Running) -> Running:
    """`running` after the queries have seen these keys too."""
    key_blocks = _cut_keys(keys)

    def for_queries(_: None, inputs: Any) -> tuple[None, Running]:
        block, running = inputs

        def for_keys(running: Running, keys: Keys) -> tuple[Running, None]:
            seen = functools.partial(_read_block, settings)
            return jax.lax.cond(
                _sees(settings, block, keys), seen, lambda q, k, running: running, block, keys, running
            ), None

        return None, jax.lax.scan(for_keys, running, key_blocks)[0]

    count = _blocks(queries.position_BT.shape[1])
    blocks = _cut_queries(queries), Running(*(_cut(x, 3, count) for x in running))
    read = jax.lax.scan(for_queries, None, blocks)[1]
    return Running(*(_join(x, 3) for x in read))


def _read_block(settings: Settings, queries: Queries, keys: Keys, running: Running) -> Running:
    scores, _, visible = _scores(settings, queries, keys)
    highest_BKGt = jnp.maximum(running.highest_BKGT, jnp.max(jnp.where(visible, scores, LOWEST), -1))
    exp = jnp.where(visible, jnp.exp(scores - highest_BKGt[..., None]), 0.0)
    shrink_BKGt = jnp.exp(running.highest_BKGT - highest_BKGt)
    read = jnp.einsum(
        "BKGTS,BSKH->BKGTH", exp.astype(keys.value_BSKH.dtype), keys.value_BSKH, preferred_element_type=jnp.float32
    )
    return Running(
        running.read_BKGTH * shrink_BKGt[..., None] + read, highest_BKGt, running.total_BKGT * shrink_BKGt + exp.sum(-1)
    )


def _gradients_block_by_block(settings: Settings, queries: Queries, keys: Keys, rows: Any, sums: Any) -> Any:
    """`sums` of gradients (queries, keys, values) with what the pairs of these queries and keys add to them."""
    d_query_BTKGH, d_key_BSKH, d_value_BSKH = sums
    count = _blocks(keys.position_BS.shape[1])
    d_keys = _cut(d_key_BSKH, 1, count), _cut(d_value_BSKH, 1, count)
    key_blocks = _cut_keys(keys)

    def for_queries(d_keys: Any, inputs: Any) -> tuple[Any, jax.Array]:
        block, rows, d_query_BtKGH = inputs

        def for_keys(d_query_BtKGH: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
            keys, d_keys = inputs
            seen = functools.partial(_gradients_block, settings)
            d_query_BtKGH, d_keys = jax.lax.cond(
                _sees(settings, block, keys), seen, lambda q, k, rows, sums: sums, block, keys, rows,
                (d_query_BtKGH, d_keys),
            )  # fmt: skip
            return d_query_BtKGH, d_keys

        d_query_BtKGH, d_keys = jax.lax.scan(for_keys, d_query_BtKGH, (key_blocks, d_keys))
        return d_keys, d_query_BtKGH

    count = _blocks(queries.position_BT.shape[1])
    blocks = _cut_queries(queries), tuple(_cut(x, 3, count) for x in rows), _cut(d_query_BTKGH, 1, count)
    (d_key, d_value), d_query = jax.lax.scan(for_queries, d_keys, blocks)
    return _join(d_query, 1), _join(d_key, 1), _join(d_value, 1)


def _gradients_block(settings: Settings, queries: Queries, keys: Keys, rows: Any, sums: Any) -> Any:
    d_read_BKGtH, log_total_BKGt, along_BKGt = rows
    d_query_BtKGH, (d_key_BsKH, d_value_BsKH) = sums
    scores, slope, visible = _scores(settings, queries, keys)
    weights = jnp.where(visible, jnp.exp(scores - log_total_BKGt[..., None]), 0.0)
    in_float32: Any = {"preferred_element_type": jnp.float32}
    d_value = jnp.einsum("BKGTS,BKGTH->BSKH", weights.astype(d_read_BKGtH.dtype), d_read_BKGtH, **in_float32)
    d_weights = jnp.einsum("BKGTH,BSKH->BKGTS", d_read_BKGtH, keys.value_BSKH, **in_float32)
    d_scores = weights * (d_weights - along_BKGt[..., None]) * slope * settings.scale
    d_scores = d_scores.astype(keys.key_BSKH.dtype)
    d_query = jnp.einsum("BKGTS,BSKH->BTKGH", d_scores, keys.key_BSKH, **in_float32)
    d_key = jnp.einsum("BKGTS,BTKGH->BSKH", d_scores, queries.query_BTKGH, **in_float32)
    return d_query_BtKGH + d_query, (d_key_BsKH + d_key, d_value_BsKH + d_value)


def _blocks(length: int) -> int:
    """The fewest blocks of the same length, an even number of them where the parts are two, of at most BLOCK."""
    even = length % 2 == 0 and length > BLOCK
    return next(
        count for count in range(-(-length // BLOCK), length + 1) if length % count == 0 and not (even and count % 2)
    )


def settles(length: int) -> bool:
    """Whether a length has a divisor that makes blocks of a useful size."""
    return length // _blocks(length) >= min(length, BLOCK // 8)


def _cut(x: jax.Array, axis: int, count: int) -> jax.Array:
    """The blocks of an axis, in front."""
    return jnp.moveaxis(x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :]), axis, 0)


def _join(x: jax.Array, axis: int) -> jax.Array:
    """The inverse of `_cut`."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _cut_keys(keys: Keys) -> Keys:
    count = _blocks(keys.position_BS.shape[1])
    return Keys(*(_cut(x, 1, count) for x in keys))


def _cut_queries(queries: Queries) -> Queries:
    count = _blocks(queries.position_BT.shape[1])
    repeated = (jnp.broadcast_to(x, (count, *x.shape)) for x in queries[3:])
    return Queries(*(_cut(x, 1, count) for x in queries[:3]), *repeated)


def _zigzag(x: jax.Array, devices: int) -> jax.Array:
    """From a row that is shared in order: device j gets the parts j and 2n-1-j of its 2n parts, on axis 1."""
    halves = zip(jnp.split(x, 2, axis=1), (0, 1), strict=True)
    even, odd = (jax.lax.ppermute(half, AXIS, _moves(devices, parity)) for half, parity in halves)
    is_even = jax.lax.axis_index(AXIS) % 2 == 0  # The parts j and 2n-1-j: one is even and the other odd.
    return jnp.concatenate([jnp.where(is_even, even, odd), jnp.where(is_even, odd, even)], axis=1)


def _straight(x: jax.Array, devices: int) -> jax.Array:
    """The inverse of `_zigzag`."""
    low, high = jnp.split(x, 2, axis=1)
    is_even = jax.lax.axis_index(AXIS) % 2 == 0
    halves = zip((jnp.where(is_even, low, high), jnp.where(is_even, high, low)), (0, 1), strict=True)
    back = [[(to, start) for start, to in _moves(devices, parity)] for parity in (0, 1)]
    return jnp.concatenate([jax.lax.ppermute(half, AXIS, back[parity]) for half, parity in halves], axis=1)


def _moves(devices: int, parity: int) -> list[tuple[int, int]]:
    """From where to where the even (or odd) one of each device's two parts goes."""
    parts = [2 * device + parity for device in range(devices)]
    return [(part // 2, part if part < devices else 2 * devices - 1 - part) for part in parts]
