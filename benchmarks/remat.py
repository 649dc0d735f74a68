"""What each remat policy keeps, and what it computes again: `uv run -m benchmarks.remat [--config=… --model.…=…]`.

Nothing is run: the gradient of the loss is compiled for this machine, in float32 with layers in a loop. Printed are the
memory that the program works with, and the products of matrices that it computes beyond those of `none`.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from configs import flags as config_flags
from configs.check import REMAT_POLICIES
from configs.convert import override
from configs.schema import Config
from model import build
from model.sharding import parameter_shapes


def measured(config: Config) -> tuple[int, float]:
    """Bytes of temporary memory, and floating-point operations of all products of matrices."""
    module: Any = build(config)
    shape = (config.train.batch_size, config.data.length)

    def loss(params: Any, tokens_BT: jax.Array) -> jax.Array:
        logits_BTV = module.apply({"params": params}, tokens_BT)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), tokens_BT[..., None], -1))

    traced = jax.jit(jax.grad(loss)).trace(parameter_shapes(module), jax.ShapeDtypeStruct(shape, jnp.int32))
    memory: Any = traced.lower().compile().memory_analysis()
    return memory.temp_size_in_bytes, products(traced.jaxpr.jaxpr)


def products(jaxpr: Any) -> float:
    """Operations of the products in a program, with loops multiplied by their length."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            inputs, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2.0 * math.prod(result) * math.prod(inputs[axis] for axis in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                total += times * products(getattr(inner, "jaxpr", inner))
    return total


def main(_: list[str]) -> None:
    """Print the table."""
    config = override(config_flags.resolve(), {"model.layers": "scan", "model.dtype": "float32"})
    exact = None
    for remat in REMAT_POLICIES:
        memory, operations = measured(override(config, {"model.remat": remat}))
        exact = exact or operations
        print(f"{remat:8} {memory / 2**20:8.0f} MiB   {operations / exact - 1:+6.1%}", flush=True)


if __name__ == "__main__":
    config_flags.define(sys.argv, default="gpt2_small")
    flags.FLAGS.set_default("train.batch_size", 2)
    flags.FLAGS.set_default("train.microbatches", 1)
    app.run(main)
