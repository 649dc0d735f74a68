"""How a token's place is told to attention, which by itself sees a set.

Shapes: B batch, T query length, S key length, N heads, H head width, D model width.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from configs.convert import head_width
from configs.schema import Config


def rope_frequencies(config: Config) -> np.ndarray:
    """Angle per position of each pair of numbers, [H/2] float64 radians.

    RoPE: Su et al. 2021, section 3.2. Scaling: `linear` divides every angle (Chen et al. 2023), `ntk` raises the base
    so that the slowest wave is stretched and the fastest kept, `llama3` stretches long waves and blends those between
    (Llama 3.1's published constants: low 1, high 4).
    """
    model = config.model
    width, factor, base = head_width(config), model.rope_scaling_factor, model.rope_base
    if model.rope_scaling == "ntk":
        base *= factor ** (width / max(width - 2, 1))
    frequency = base ** (-np.arange(0, width, 2) / width)
    if model.rope_scaling == "linear":
        frequency = frequency / factor
    elif model.rope_scaling == "llama3":
        low, high = 1.0, 4.0
        turns = model.rope_original_length * frequency / (2 * math.pi)  # Waves that fit into the original length.
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequency = kept * frequency + (1 - kept) * frequency / factor
    return frequency


def rope_rotation(config: Config, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of each position's angles, each [B,T,1,H/2] float32, for `rotate`."""
    frequency_111P = rope_frequencies(config).astype(np.float32)[None, None, None]
    angle = positions_BT[:, :, None, None].astype(jnp.float32) * frequency_111P
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn each pair (x[i], x[i+H/2]) by its angle; a dot product of two such vectors depends on distance only."""
    cos, sin = rotation
    x1, x2 = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_BTNH.dtype)


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
