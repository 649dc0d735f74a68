"""The parts of a block that are not attention: linear maps, norms, dropout, the feed-forward layer.

Shapes: B batch, T length, D model width, F feed-forward width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.scope import LazyRng
from jax.ad_checkpoint import checkpoint_name

from configs.derived import feed_forward_width, in_use
from configs.schema import Config
from model import packed, quantized
from model.lens.places import tap
from model.sharding import constrain, platform, ways

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    # The tanh form of GELU: the exact one's gradient (erf) is four times slower on a CPU.
    "gelu": lambda x: nn.gelu(x, approximate=True),
    "gelu_exact": lambda x: nn.gelu(x, approximate=False),
    "silu": nn.silu,
    "relu": nn.relu,
    "relu2": lambda x: jnp.square(nn.relu(x)),
}


class Linear(nn.Module):
    """A linear map from the last `len(inputs)` axes to the axes `outputs`, with its kernel shaped inputs + outputs.

    `bias` None has a bias where the config's linear maps have one.
    """

    config: Config
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    gain: float = 1.0
    bias: bool | None = None
    exact: bool = False  # Whatever `model.matmul` says.

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., *inputs] to [..., *outputs]."""
        model, count = self.config.model, len(self.inputs)
        scale = self.gain / math.sqrt(math.prod(self.inputs))
        if self.has_variable("params", packed.MATRIX):
            y = self.packed_product(x)
        else:
            kernel = self.param(
                "kernel", nn.initializers.normal(scale), self.inputs + self.outputs, jnp.dtype(model.param_dtype)
            ).astype(model.dtype)
            whole = model.matmul == "default" or self.exact
            y = multiply(x, kernel, count) if whole else quantized.multiply(x, kernel, count, model.matmul)
        if self.has_lora():
            y = y + self.lora(x)
        if model.biases if self.bias is None else self.bias:
            bias = self.param("bias", nn.initializers.zeros, self.outputs, jnp.dtype(model.param_dtype))
            y = y + bias.astype(model.dtype)[(None,) * (x.ndim - count)]
        return checkpoint_name(y, str(self.name))

    def packed_product(self, x: jax.Array) -> jax.Array:
        """What a kernel that is packed makes of [..., *inputs]."""
        of_self = self.variables["params"]
        lead = x.shape[: x.ndim - len(self.inputs)]
        y = packed.product(x.reshape(*lead, -1), of_self[packed.MATRIX], of_self.get(packed.SCALE))
        return y.reshape(*lead, *self.outputs).astype(self.config.model.dtype)

    def has_lora(self) -> bool:
        """Whether low-rank matrices are trained beside this map's kernel: within layers, where they are targets."""
        model = self.config.model
        if not self.is_initializing():
            return self.has_variable("params", "lora_in")  # A layer of a pipeline does not know its path.
        targets = model.lora_targets.split(",")
        return model.lora_rank > 0 and "layers" in self.path and (self.name in targets or "all" in targets)

    def lora(self, x: jax.Array) -> jax.Array:
        """What low-rank adaptation adds (Hu et al. 2021): nothing at first, since its second matrix starts at 0."""
        model, count, rank = self.config.model, len(self.inputs), (self.config.model.lora_rank,)
        spread = nn.initializers.normal(1 / math.sqrt(math.prod(self.inputs)))
        narrow = self.param("lora_in", spread, self.inputs + rank, jnp.dtype(model.param_dtype))
        widen = self.param("lora_out", nn.initializers.zeros, rank + self.outputs, jnp.dtype(model.param_dtype))
        hidden = multiply(x, narrow.astype(model.dtype), count)
        scale = model.lora_alpha / model.lora_rank
        return jnp.tensordot(hidden * scale, widen.astype(model.dtype), 1)


def multiply(x: jax.Array, kernel: jax.Array, count: int = 1) -> jax.Array:
    """The product [..., *outputs] of x [..., *inputs] and a kernel [*inputs, *outputs], with `count` axes of inputs.

    On a CPU both are made matrices first. There XLA sums the kernel's gradient over one axis of tokens within the
    product; over two, it copies a transposed x and gradient first: a feed-forward layer took 1.5 times as long.
    """
    if platform() != "cpu" or ways("length") > 1:  # Tokens that devices share are better left on an axis of their own.
        contracted = tuple(range(x.ndim - count, x.ndim)), tuple(range(count))
        return jax.lax.dot_general(x, kernel, (contracted, ((), ())))
    lead, inputs, outputs = x.shape[: x.ndim - count], kernel.shape[:count], kernel.shape[count:]
    kernel = kernel.reshape(math.prod(inputs), math.prod(outputs))
    return (x.reshape(math.prod(lead), math.prod(inputs)) @ kernel).reshape(*lead, *outputs)


class Dropout(nn.Module):
    """Set a share of the numbers to 0 and scale the others up (Srivastava et al. 2014).

    What is dropped from a row is a function of the random stream, the module's path and the row's number alone, so that
    it depends on neither microbatches, nor the devices that share batch or layers, nor how often JAX traces a layer
    (which is what `make_rng` counts).
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x_BTD: jax.Array, rows_B: jax.Array) -> jax.Array:
        """Drop from [B,T,D], whose rows have the numbers `rows_B`."""
        if self.deterministic or not in_use(self.rate):
            return x_BTD
        if self.scope is None or "dropout" not in self.scope.rngs:
            raise ValueError("Dropout needs a random stream: apply(..., rngs={'dropout': key}).")
        key = LazyRng.create(self.scope.rngs["dropout"]).as_jax_rng()
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B)
        kept_BTD = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x_BTD.shape[1:]))(keys_B)
        return jnp.where(kept_BTD, x_BTD / (1 - self.rate), jnp.zeros_like(x_BTD))


class Norm(nn.Module):
    """RMS norm (Zhang & Sennrich 2019) or layer norm (Ba et al. 2016) of the last axis, computed in float32."""

    config: Config
    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize [..., D] to mean square 1 (for layer norm: after taking off the mean), then scale each number."""
        model, width = self.config.model, x.shape[-1]
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + model.norm_epsilon)
        lead = (None,) * (x.ndim - 1)
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.dtype(model.param_dtype))
        y = y * scale.astype(jnp.float32)[lead]
        if self.kind == "layer" and model.biases:
            bias = self.param("bias", nn.initializers.zeros, (width,), jnp.dtype(model.param_dtype))
            y = y + bias.astype(jnp.float32)[lead]
        return y.astype(x.dtype)


class FeedForward(nn.Module):
    """Each token by itself: widen, bend, narrow again; gated as in Shazeer 2020 (SwiGLU, GEGLU)."""

    config: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Map [B,T,D] to [B,T,D]."""
        config, model = self.config, self.config.model
        D, F = (model.width,), (feed_forward_width(config),)
        hidden_BTF = Linear(config, D, F, name="up")(x_BTD)
        if model.gated:
            hidden_BTF = ACTIVATIONS[model.activation](Linear(config, D, F, name="gate")(x_BTD)) * hidden_BTF
        else:
            hidden_BTF = ACTIVATIONS[model.activation](hidden_BTF)
        hidden_BTF = constrain(hidden_BTF, "batch", "length", "hidden")
        hidden_BTF = tap(self, "hidden", hidden_BTF)
        return Linear(config, F, D, gain=residual_gain(config), name="down")(hidden_BTF)


def residual_gain(config: Config) -> float:
    """Initial scale of what is added to the residual stream, so that its variance does not grow with depth."""
    return 1.0 / math.sqrt(2 * config.model.num_layers)
