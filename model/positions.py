"""How a token's place is told to attention, which by itself sees a set.

Shapes: B batch, T query length, S key length, N heads, H head width, D model width.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from configs.derived import head_width, latent_rope_width
from configs.schema import Config, ConfigError


def rope_width(config: Config) -> int:
    """How many numbers at the head's beginning are rotated, an even number.

    Raises:
      ConfigError: an odd number of them, or none.
    """
    if config.model.attention == "latent":
        return latent_rope_width(config)
    width = int(head_width(config) * config.model.rope_fraction)
    if width < 2 or width % 2:
        raise ConfigError(
            f"--model.rope_fraction={config.model.rope_fraction} of the head width {head_width(config)} is {width} "
            f"numbers, and RoPE turns pairs: it must be an even number of them, at most the head's width."
        )
    return width


def rope_frequencies(config: Config, *, local: bool = False, long: bool = False) -> np.ndarray:
    """Angle per position of each pair of numbers, [R/2] float64 radians; R is `rope_width`.

    RoPE: Su et al. 2021, section 3.2. Scaling: `linear` divides every angle (Chen et al. 2023), `ntk` raises the base
    so that the slowest wave is stretched and the fastest kept, `llama3` stretches long waves and blends those between
    by how often they turn in the original length (Llama 3.1's published code), `yarn` blends by their place in the
    series (Peng et al. 2023, section 3.2), `longrope` stretches each by a number that was searched for (Ding et al.
    2024).

    Args:
      config: `model.rope_*`.
      local: those of layers with a window: `rope_local_base`, which no scaling touches (Gemma 3).
      long: LongRoPE: those for texts longer than the original length.
    """
    model, width = config.model, rope_width(config)
    factor, base, scaling = model.rope_scaling_factor, model.rope_base, model.rope_scaling
    if local and model.rope_local_base:
        base, scaling = model.rope_local_base, "none"
    if scaling == "ntk":
        base *= factor ** (width / max(width - 2, 1))
    frequency = base ** (-np.arange(0, width, 2) / width)
    if scaling == "linear":
        frequency = frequency / factor
    elif scaling == "llama3":
        if model.rope_fast <= model.rope_slow:
            raise ConfigError(f"--model.rope_fast={model.rope_fast} must be above --model.rope_slow={model.rope_slow}.")
        turns = model.rope_original_length * frequency / (2 * math.pi)  # Waves that fit into the original length.
        kept = np.clip((turns - model.rope_slow) / (model.rope_fast - model.rope_slow), 0.0, 1.0)
        frequency = kept * frequency + (1 - kept) * frequency / factor
    elif scaling == "yarn":
        fast, slow = (_pair_that_turns(turns, config) for turns in (model.rope_fast, model.rope_slow))
        first, last = max(math.floor(fast), 0), min(math.ceil(slow), width - 1)
        kept = 1 - np.clip((np.arange(width // 2) - first) / max(last - first, 1e-3), 0.0, 1.0)
        frequency = kept * frequency + (1 - kept) * frequency / factor
    elif scaling == "longrope":
        name = "rope_long_factors" if long and model.rope_long_factors else "rope_factors"
        frequency = frequency / _factors(config, name)
    return frequency


def _pair_that_turns(turns: float, config: Config) -> float:
    """Which pair of numbers, counted from the fastest, turns that often in the original length."""
    model = config.model
    wave = model.rope_original_length / (turns * 2 * math.pi)
    return rope_width(config) * math.log(wave) / (2 * math.log(model.rope_base))


def _factors(config: Config, name: str) -> np.ndarray:
    text: str = getattr(config.model, name)
    try:
        factors = np.array([float(part) for part in text.split(",")])
    except ValueError:
        raise ConfigError(f"--model.{name}={text!r} must be numbers with commas between them.") from None
    if len(factors) != rope_width(config) // 2 or not (factors > 0).all():
        raise ConfigError(
            f"--model.{name} has {len(factors)} numbers; --model.rope_scaling=longrope needs one above 0 for each of "
            f"the {rope_width(config) // 2} pairs of numbers that RoPE turns."
        )
    return factors


def rope_attention_factor(config: Config) -> float:
    """What rotated queries and keys are multiplied by: 1, or what keeps attention as sharp over longer texts.

    YaRN: Peng et al. 2023, section 3.4; LongRoPE: Ding et al. 2024, section 3.3.
    """
    model, factor = config.model, config.model.rope_scaling_factor
    if model.rope_scaling not in ("yarn", "longrope"):
        return 1.0
    if model.rope_attention_factor:
        return model.rope_attention_factor
    if model.rope_scaling == "yarn":
        return 0.1 * math.log(factor) + 1.0
    return math.sqrt(1 + math.log(factor) / math.log(model.rope_original_length))


def rope_rotation(
    config: Config, positions_BT: jax.Array, *, local: bool = False, real_BT: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of each position's angles, each [B,T,1,R/2] float32, for `rotate`.

    Args:
      config: `model.rope_*`.
      positions_BT: int32 place of each token in its text.
      local: those of layers with a window, where `rope_local_base` is set.
      real_BT: bool, False where a token is padding, whose position then does not count as part of the text.

    LongRoPE has other waves for a row that reaches beyond the original length; so a text that grows beyond it while it
    is decoded from a cache is not what the whole text at once would be: its cached keys were turned by the others.
    """
    model = config.model
    unscaled = local and bool(model.rope_local_base)
    places_BT11 = positions_BT[:, :, None, None].astype(jnp.float32)
    angle = places_BT11 * rope_frequencies(config, local=local).astype(np.float32)[None, None, None]
    if model.rope_scaling == "longrope" and model.rope_long_factors and not unscaled:
        reach_BT = positions_BT if real_BT is None else jnp.where(real_BT, positions_BT, 0)
        long_B = jnp.max(reach_BT, axis=1) >= model.rope_original_length
        stretched = places_BT11 * rope_frequencies(config, long=True).astype(np.float32)[None, None, None]
        angle = jnp.where(long_B[:, None, None, None], stretched, angle)
    factor = 1.0 if unscaled else rope_attention_factor(config)
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def rotate(x_BTNH: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn each pair (x[i], x[i+R/2]) by its angle; a dot product of two such vectors depends on distance only.

    R is twice the number of angles; where the head is wider, the rest of it stays as it is.
    """
    cos, sin = rotation
    width = 2 * cos.shape[-1]
    x1, x2 = jnp.split(x_BTNH[..., :width].astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_BTNH.dtype)
    return turned if width == x_BTNH.shape[-1] else jnp.concatenate([turned, x_BTNH[..., width:]], axis=-1)


def relative_buckets(distance_BTS: jax.Array, bidirectional: bool, buckets: int, max_distance: int) -> jax.Array:
    """The range that each distance falls into, int32 in 0..buckets-1 (Raffel et al. 2020, section 2.1).

    Half of the ranges are one distance each, from 0 on; the other half grow geometrically, and the last takes all from
    `max_distance` on. In both directions, the first half of all ranges is for what lies behind and for the token
    itself, the second half for what lies ahead; in one direction, all that lies ahead counts as distance 0.

    Args:
      distance_BTS: int32, how far each key lies behind each query; any shape.
      bidirectional: whether keys ahead are told from keys behind.
      buckets: how many ranges there are.
      max_distance: from where on all distances share a range.
    """
    ahead, count = jnp.zeros_like(distance_BTS), buckets
    if bidirectional:
        count = buckets // 2
        ahead = jnp.where(distance_BTS < 0, count, 0)
    far = jnp.abs(distance_BTS) if bidirectional else jnp.maximum(distance_BTS, 0)
    exact = count // 2
    if max_distance <= exact:
        raise ConfigError(
            f"--model.relative_distance={max_distance} must be above {exact}, the distances that have one of "
            f"--model.relative_buckets={buckets} to themselves."
        )
    # In float32 and in this order, as in the published code: elsewhere a distance at an edge would change its range.
    growth = jnp.log(jnp.maximum(far, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    wide = jnp.minimum(exact + (growth * (count - exact)).astype(jnp.int32), count - 1)
    return (ahead + jnp.where(far < exact, far, wide)).astype(jnp.int32)


def sinusoids(positions_BT: jax.Array, width: int) -> jax.Array:
    """Fixed position vectors [B,T,D] float32: sines, then cosines (Vaswani et al. 2017, section 3.5)."""
    half = -(-width // 2)
    frequency_11P = (10_000.0 ** (-np.arange(half) / max(half, 1))).astype(np.float32)[None, None]
    angle = positions_BT[:, :, None].astype(jnp.float32) * frequency_11P
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[..., :width]


def alibi_slopes(num_heads: int) -> np.ndarray:
    """The penalty per token of distance of each head, [N] float32 (Press et al. 2022, section 3).

    A geometric series from 2^(-8/N); for N that is no power of two, it goes on with every other one of the next series.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4.0 * np.arange(1, 2 * power + 1, 2) / power)
    return np.concatenate([slopes, between[: num_heads - power]]).astype(np.float32)
