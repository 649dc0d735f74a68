"""Attention by JAX's Pallas kernel for TPUs, which leaves out the blocks that nobody sees: splash attention.

Shapes: B batch, T query length, S key length, N heads, K key/value heads, H head width.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from model.masks import Sight
from model.remat import ATTENTION
from model.sharding import partition, platform, ways

LANES = 128  # Block lengths are multiples of it.
LONGEST = 512  # 2048 does not fit into the fast memory of a v5e; 512 does everywhere.


def splash(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    sight: Sight,
    *,
    scale: float,
    window: jax.Array,
    windows: tuple[int, ...] = (0,),
    softcap: float = 0.0,
) -> jax.Array:
    """The output of `dense` without its weights, [B,T,N,H]; T and S are multiples of 128.

    Who sees whom is compiled into the kernel: the place in the row, a window, and the segments that are given to it. So
    there is a kernel for each of the `windows` that layers have, and `window`, an int32 scalar, chooses among them.

    On other platforms than a TPU the kernel is interpreted, which is for tests. Devices that share a row share its
    queries, and each gets all of its keys.
    """

    def attend(window: int) -> jax.Array:
        return _attend(query_BTNH, key_BSKH, value_BSKH, sight, scale, window, softcap)

    if len(windows) == 1:
        return attend(windows[0])
    index = jnp.sum(jnp.asarray(windows[:-1], jnp.int32) < window)
    return jax.lax.switch(index, [functools.partial(attend, window) for window in windows])


def _attend(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    sight: Sight,
    scale: float,
    window: int,
    softcap: float,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    (T, N), S, shards = query_BTNH.shape[1:3], key_BSKH.shape[1], (ways("length"), ways("heads"))
    if not (window or sight.causal):  # A mask that hides nothing has nothing to share: each device gets a whole one.
        (T, N), shards = (T // shards[0], N // shards[1]), (1, 1)
    kernel = _kernel(T, S, N, window, sight.causal, softcap, shards)
    segments = sight.segments

    def local(kernel: Any, query_BTNH: jax.Array, *rest: jax.Array) -> jax.Array:
        key_BSKH, value_BSKH, *ids = rest
        arrays = (query_BTNH * jnp.asarray(scale, query_BTNH.dtype), key_BSKH, value_BSKH)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # JAX's code mixes both.
            over_rows = jax.vmap(kernel, (0, 0, 0, 0 if ids else None))
            return over_rows(*(x.swapaxes(1, 2) for x in arrays), SegmentIds(*ids) if ids else None).swapaxes(1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        rows, places = partition("batch", "length", "heads", "head"), partition("batch", "length")
        all_keys = PartitionSpec(rows[0], None, *rows[2:])
        lies = partition("heads", "length") if shards != (1, 1) else PartitionSpec(None, None)
        of_mask = kernel.manual_sharding_spec(NamedSharding(mesh, lies))
        of_segments = (places, PartitionSpec(rows[0]))[: len(segments)]
        specs = (of_mask, rows, all_keys, all_keys, *of_segments)
        local = jax.shard_map(local, in_specs=specs, out_specs=rows, check_vma=False)
    return local(kernel, query_BTNH, key_BSKH, value_BSKH, *segments)


def _kernel(T: int, S: int, N: int, window: int, causal: bool, softcap: float, shards: tuple[int, int]) -> Any:
    """JAX's kernel, shared by so many devices along the queries and along the heads."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    if window:
        mask = splash_attention_mask.LocalMask((T, S), (window - 1, 0 if causal else window - 1), 0)
    elif causal:
        mask = splash_attention_mask.CausalMask((T, S))
    else:
        mask = splash_attention_mask.FullMask((T, S))
    query, key = block(T // shards[0]), block(S)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=query, block_kv=key, block_kv_compute=key,
        block_q_dkv=query, block_kv_dkv=key, block_kv_dkv_compute=key,
        block_q_dq=query, block_kv_dq=key,
    )  # fmt: skip
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * N), block_sizes=sizes, head_shards=shards[1],
        q_seq_shards=shards[0], attn_logits_soft_cap=softcap or None, residual_checkpoint_name=ATTENTION,
        interpret=platform() != "tpu",
    )  # fmt: skip


def block(length: int) -> int:
    """The longest block that divides a length; 0 where none does."""
    return next((size for size in range(LONGEST, 0, -LANES) if length % size == 0), 0)
