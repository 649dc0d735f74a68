"""The ways to compute softmax(QK^T/sqrt(d))V, one file each, and which of them is used."""

from __future__ import annotations

import functools
import logging

import jax

from configs.derived import layer_windows
from configs.schema import Config
from model.kernels.cached import cached
from model.kernels.chunked import chunked
from model.kernels.dense import dense
from model.kernels.fused import fused
from model.kernels.ring import ring
from model.kernels.ring import settles as ring_settles
from model.kernels.splash import block as splash_block
from model.kernels.splash import splash
from model.masks import Sight
from model.sharding import divides, platform, ways

BLOCKWISE = ("ring", "gather", "splash")  # Those that are told who sees whom, and never make a matrix of it.
LEAST_CHUNKED = 128  # Tokens; on a CPU, shorter rows gain nothing from being read in chunks.
SHORT_RING = 2  # Devices among which keys are gathered rather than sent around (splash, on a TPU: twice as many).


def choose(
    config: Config,
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    *,
    causal: bool,
    biased: bool = False,
) -> str:
    """The kernel that `model.kernel` means for these arrays.

    auto is splash on a TPU, fused on a GPU, chunked on a CPU, and where devices share a row ring, or gather if they are
    few; dense where those cannot do what is asked. A kernel that was asked for by name and cannot take arrays of this
    shape gives way to dense, and that is logged.

    Args:
      causal: whether the keys are those of the queries' own row and each token sees none behind it.
      biased: whether a learned bias is added to the scores.
    """
    arrays = query_BTNH, key_BSKH, value_BSKH
    if config.model.kernel != "auto":
        obstacle = _obstacle(config.model.kernel, config, arrays, causal, biased)
        if obstacle:
            _tell(f"--model.kernel={config.model.kernel} gives way to dense: {obstacle}.")
        return "dense" if obstacle else config.model.kernel
    shared, wanted = ways("length"), []
    if platform() == "tpu" and shared <= 2 * SHORT_RING:
        wanted.append("splash")
    if platform() == "gpu" and shared == 1:
        wanted.append("fused")
    if platform() == "cpu" and shared == 1 and query_BTNH.shape[1] >= LEAST_CHUNKED:
        wanted.append("chunked")
    if shared > 1:
        wanted.append("gather" if shared <= SHORT_RING else "ring")
    return next((kernel for kernel in wanted if not _obstacle(kernel, config, arrays, causal, biased)), "dense")


def blockwise(
    kernel: str,
    config: Config,
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    sight: Sight,
    *,
    scale: float,
    window: jax.Array,
    slopes_N: jax.Array | None,
    sinks_N: jax.Array | None,
) -> jax.Array:
    """What each query reads, [B,T,N,H of the values], by one of BLOCKWISE; see `ring` for the arguments."""
    softcap = config.model.attention_softcap
    if kernel == "splash":
        windows = tuple(sorted(set(layer_windows(config, config.model.num_layers))))
        windows = windows if config.model.window else (0,)
        return splash(
            query_BTNH, key_BSKH, value_BSKH, sight, scale=scale, window=window, windows=windows, softcap=softcap
        )
    return ring(
        query_BTNH, key_BSKH, value_BSKH, sight, scale=scale, window=window, softcap=softcap, slopes_N=slopes_N,
        sinks_N=sinks_N, gather=kernel == "gather",
    )  # fmt: skip


def _obstacle(kernel: str, config: Config, arrays: tuple[jax.Array, ...], causal: bool, biased: bool) -> str:
    """Why a kernel cannot do what is asked; empty where it can."""
    model, (query_BTNH, key_BSKH, value_BSKH) = config.model, arrays
    if kernel == "fused":
        able = not (model.attention_softcap or model.attention_sinks)
        return "" if able else "it knows neither a soft-cap nor sinks"
    if kernel == "chunked":
        return "" if causal else "it is for tokens that see none behind them in their own row"
    if kernel not in BLOCKWISE:
        return ""
    if biased:
        return "it takes no learned bias"
    if not all(divides(x.shape, "batch", "length", "heads", "head") for x in arrays):
        mesh, shapes = dict(jax.sharding.get_abstract_mesh().shape), " and ".join(str(x.shape) for x in arrays[:2])
        return f"the mesh {mesh} does not divide rows, tokens or heads of {shapes}"
    T, S = query_BTNH.shape[1] // ways("length"), key_BSKH.shape[1]
    if kernel != "splash":
        keys = S if kernel == "gather" else S // ways("length")
        return "" if ring_settles(T) and ring_settles(keys) else f"lengths {T} and {keys} have no fitting divisor"
    if model.attention_sinks or model.position == "alibi":
        return "it knows neither sinks nor ALiBi"
    if query_BTNH.shape[-1] != value_BSKH.shape[-1]:
        return "its values are as wide as its keys"
    return "" if splash_block(T) and splash_block(S) else f"lengths {T} and {S} are not multiples of 128"


@functools.cache
def _tell(line: str) -> None:
    """Log a line once."""
    logging.getLogger("seq2see").warning(line)


__all__ = ["BLOCKWISE", "blockwise", "cached", "choose", "chunked", "dense", "fused", "ring", "splash"]
