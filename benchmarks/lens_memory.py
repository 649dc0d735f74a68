"""Memory of recording a long text in the shape of SmolLM2-135M, by how much is kept: what the compiled program says.

  uv run python -m benchmarks.lens_memory                    32,768 tokens
  uv run python -m benchmarks.lens_memory --length=8192 --json

Nothing is run and there are no weights: the recording is compiled in float32 for this machine's CPU, and the program's
own account of memory is printed, GB: parameters, what it gives back, and what it works with in between.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from typing import Any

from absl import app, flags

from benchmarks.sides import SMOLLM2

FLAGS = flags.FLAGS
flags.DEFINE_integer("length", 32_768, "Tokens of the text.", lower_bound=16)
flags.DEFINE_boolean("json", False, "Print one JSON object.")


def main(_: list[str]) -> None:
    """Print the table."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    from benchmarks.decode_cpu_seq2see import our_settings
    from configs.convert import override
    from configs.schema import Config
    from model import build
    from model.lens.places import Part
    from model.lens.record import record
    from model.sharding import parameter_shapes

    T, weights = FLAGS.length, "layers/attention/weights"
    eight = tuple(T * part // 8 for part in range(8))
    kinds = {
        "logits of the last token, no weights": ((), Part(positions=(-1,))),
        "eight largest weights of each query": ((weights,), Part(top=8, logits=False)),
        "whole rows of eight queries": ((weights,), Part(positions=eight, logits=False)),
        "residual stream of eight tokens": (("layers/residual/after",), Part(positions=eight, logits=False)),
    }
    module = build(override(Config(), our_settings({**SMOLLM2, "dtype": "float32", "set": {"data.length": T}})))
    params, tokens_BT = parameter_shapes(module), jax.ShapeDtypeStruct((1, T), jnp.int32)
    table = {}
    for name, (what, part) in kinds.items():
        print(f"compiling: {name}", file=sys.stderr)
        look = jax.jit(partial(record, module, what=what, part=part))
        memory: Any = look.lower(params, tokens_BT).compile().memory_analysis()
        parts = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
        table[name] = dict(zip(("parameters", "result", "working", "all"), (*parts, sum(parts)), strict=True))
    if FLAGS.json:
        print(json.dumps({"length": T, "bytes": table}))
        return
    print(f"{'kept of ' + format(T, ',') + ' tokens':40} {'parameters':>10} {'result':>8} {'working':>8} {'all':>8}")
    for name, row in table.items():
        print(f"{name:40} {row['parameters'] / 1e9:10.2f} {row['result'] / 1e9:8.2f} "
              f"{row['working'] / 1e9:8.2f} {row['all'] / 1e9:8.2f}")  # fmt: skip


if __name__ == "__main__":
    app.run(main)
