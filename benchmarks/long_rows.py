"""Memory per device of training on long rows, by how many devices share a row: what the compiled program says.

  uv run python -m benchmarks.long_rows                      131,072 tokens, on 1, 2, 4 and 8 simulated devices
  uv run python -m benchmarks.long_rows --length=1048576 --kernels=ring

Nothing is run: the train step of GPT-2 small with grouped heads, rope and remat full is compiled in bfloat16, and the
program's own account of memory is printed, GB per device.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("length", 131_072, "Tokens in a row.", lower_bound=64)
flags.DEFINE_list("kernels", ["ring", "gather"], "Which kernels, of ring, gather and dense.")
flags.DEFINE_list("devices", ["1", "2", "4", "8"], "How many devices share a row.")
flags.DEFINE_boolean("json", False, "Print one JSON object.")


def memory(kernel: str, devices: int) -> dict[str, float]:
    """GB per device: what the step is given (parameters and optimizer state, whole on each), and what it works with."""
    import jax

    from configs.convert import override
    from configs.presets import preset
    from launch.plans.compiling import train_program
    from model.sharding import make_mesh

    settings: dict[str, Any] = {
        "model.position": "rope", "model.attention": "gqa", "model.num_kv_heads": 4, "model.dropout": 0.0,
        "model.dtype": "bfloat16", "model.layers": "scan", "model.remat": "full", "model.kernel": kernel,
        "data.length": FLAGS.length, "train.batch_size": 1, "train.microbatches": 1,
    }  # fmt: skip
    axes = {"mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 1, "mesh.sequence": devices}
    config = override(preset("gpt2_small"), settings | axes)
    lowered, _ = train_program(config, make_mesh(config.mesh, jax.devices()[:devices]))
    analysis = lowered.compile().memory_analysis()
    return {"state": analysis.argument_size_in_bytes / 1e9, "working": analysis.temp_size_in_bytes / 1e9}


def main(_: list[str]) -> None:
    """Print the table."""
    counts = [int(count) for count in FLAGS.devices]
    table = {}
    for kernel in FLAGS.kernels:
        for devices in counts:
            print(f"compiling {kernel} on {devices}", file=sys.stderr)
            table[f"{kernel}, {devices}"] = memory(kernel, devices)
    if FLAGS.json:
        print(json.dumps({"length": FLAGS.length, "gigabytes": table}))
        return
    print(f"{'kernel, devices':16} {'state':>8} {'working':>8} {'times 1 device':>15}")
    for name, row in table.items():
        first = table[f"{name.split(',')[0]}, {counts[0]}"]["working"]
        print(f"{name:16} {row['state']:8.2f} {row['working']:8.2f} {row['working'] / first:15.2f}")


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    app.run(main)
