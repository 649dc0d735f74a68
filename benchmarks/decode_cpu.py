"""Writing text on this machine's CPU: time per token beside `transformers` and llama.cpp, in turns, and the bound.

  uv run --extra parity python -m benchmarks.decode_cpu                    every batch and dtype
  uv run --extra parity python -m benchmarks.decode_cpu --batches=1 --dtypes=float32 --rounds=3 --json
  uv run python -m benchmarks.decode_cpu --sides=seq2see,int8
  uv run python -m benchmarks.decode_cpu --sides=seq2see,llama.cpp     after `uv pip install xllamacpp`

Random weights in the shape of SmolLM2-135M; each side is a process of its own, which continues `batch` prompts
greedily. In a turn it does so twice, by few tokens and by many: how much longer the many take is the time of their
steps, each of which writes one token for every row; the rest is the time of reading the prompt. Shown are the fastest
of some rounds, since other programs on the machine can only make a side slower.

The bound is what a step has to read, weights and keys and values up to the middle of the text, over the fastest at
which this machine read a large array in between. Beside the time stands that of all processors together: on a machine
that others use it says more, though PyTorch's threads also take it while they wait.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from absl import app, flags

from benchmarks.sides import SMOLLM2, Side

SHAPES: dict[str, dict[str, int]] = {
    "smollm2": {**SMOLLM2, "prompt": 128, "few": 16, "many": 128},
    "tiny": {
        "layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "hidden": 32, "vocabulary": 64, "prompt": 8,
        "few": 16, "many": 32,
    },
}  # fmt: skip
SIDES = {
    "seq2see": "our generate",
    "int8": "the same with --weights=int8",
    "transformers": "Hugging Face transformers' generate, PyTorch eager",
    "llama.cpp": "llama.cpp's server within a process, by xllamacpp",
}

FLAGS = flags.FLAGS
flags.DEFINE_enum("shape", "smollm2", list(SHAPES), "Which network.")
flags.DEFINE_list("batches", ["1", "8"], "How many texts at once.")
flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "What weights are kept in, and computed with.")
flags.DEFINE_list("sides", ["seq2see", "transformers"], f"Who writes, of {', '.join(SIDES)}.")
flags.DEFINE_integer("rounds", 5, "How often each side has its turn.", lower_bound=1)
flags.DEFINE_string("torch_python", sys.executable, "The Python that has PyTorch and transformers.")
flags.DEFINE_string("llama_python", sys.executable, "The Python that has xllamacpp.")
flags.DEFINE_multi_string("set", [], "A setting of our side, NAME=VALUE in JSON, such as model.layers='\"unroll\"'.")
flags.DEFINE_boolean("json", False, "Print one JSON object.")


def start(name: str, settings: dict[str, Any]) -> Side:
    """A process that writes when asked to."""
    if name == "transformers":
        return Side(FLAGS.torch_python, "benchmarks.decode_cpu_transformers", settings)
    if name == "llama.cpp":
        return Side(FLAGS.llama_python, "benchmarks.decode_cpu_llama_cpp", settings)
    changed = {key: json.loads(value) for key, _, value in (setting.partition("=") for setting in FLAGS.set)}
    weights = "int8" if name == "int8" else ""
    return Side(sys.executable, "benchmarks.decode_cpu_seq2see", {**settings, "set": changed, "weights": weights})


def bytes_of_a_step(shape: dict[str, int], dtype: str, batch: int) -> int:
    """Weights, and each row's keys and values up to the middle of what is written; norms are left out."""
    D, H = shape["width"], shape["width"] // shape["heads"]
    attention = 2 * D * D + 2 * D * shape["kv_heads"] * H
    weights = shape["layers"] * (attention + 3 * D * shape["hidden"]) + shape["vocabulary"] * D
    length = shape["prompt"] + (shape["few"] + shape["many"]) // 2
    kept = batch * shape["layers"] * 2 * length * shape["kv_heads"] * H
    return (weights + kept) * {"float32": 4, "bfloat16": 2}[dtype]


def compare(dtype: str, batch: int) -> dict[str, Any]:
    """Seconds per step and until the first token, of each side; bytes per step; the machine's bytes per second."""
    shape = SHAPES[FLAGS.shape]
    sides = {name: start(name, {**shape, "dtype": dtype, "batch": batch}) for name in FLAGS.sides}
    turns: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in sides}
    bandwidth = 0.0
    for _ in range(FLAGS.rounds):
        for name, side in sides.items():
            turns[name].append({count: side.ask("write", shape[count]) for count in ("few", "many")})
        bandwidth = max(bandwidth, sides["seq2see"].ask("bandwidth", 0.5)["bytes_per_second"])
    for side in sides.values():
        side.close()
    found: dict[str, Any] = {}
    for name, own in turns.items():
        (step, prompt), (cpu, _) = (_per_step(shape, own, clock) for clock in ("seconds", "cpu"))
        found[name] = {"step": step, "cpu": cpu, "prompt": prompt, "turns": own, **sides[name].facts}
    return {"sides": found, "bytes": bytes_of_a_step(shape, dtype, batch), "bytes_per_second": bandwidth}


def _per_step(shape: dict[str, int], turns: list[dict[str, dict[str, float]]], clock: str) -> tuple[float, float]:
    """Seconds of a step and of the rest, in the fastest turns."""
    few, many = (min(turn[count][clock] for turn in turns) for count in ("few", "many"))
    step = (many - few) / (shape["many"] - shape["few"])
    return step, few - shape["few"] * step


def main(_: list[str]) -> None:
    """Measure and print."""
    unknown = set(FLAGS.sides) - set(SIDES)
    if unknown or "seq2see" not in FLAGS.sides:
        raise app.UsageError(f"--sides={','.join(FLAGS.sides)}: seq2see, and any of {', '.join(SIDES)}.")
    results = {}
    if not FLAGS.json:
        columns = f"{'ms/step':>8} {'CPU ms':>7} {'tokens/s':>9} {'x ours':>7} {'x bound':>8} {'prompt ms':>10}"
        print(f"{'dtype, batch':14} {'side':13} {columns}")
    for dtype in FLAGS.dtypes:
        for batch in map(int, FLAGS.batches):
            result = results[f"{dtype}, {batch}"] = compare(dtype, batch)
            if not FLAGS.json:
                show(f"{dtype}, {batch}", batch, result)
    if FLAGS.json:
        print(json.dumps(results))


def show(name: str, batch: int, result: dict[str, Any]) -> None:
    """A row for each side, and one for the bound."""
    bound = result["bytes"] / result["bytes_per_second"]
    ours = result["sides"]["seq2see"]["step"]
    for side, found in result["sides"].items():
        step = found["step"]
        row = f"{name:14} {side:13} {step * 1e3:8.1f} {found['cpu'] * 1e3:7.1f} {batch / step:9.1f} {step / ours:7.2f}"
        print(f"{row} {step / bound:8.2f} {found['prompt'] * 1e3:10.0f}", flush=True)
    row = f"{name:14} {'bound':13} {bound * 1e3:8.1f} {'':7} {batch / bound:9.1f} {bound / ours:7.2f}     1.00"
    print(row, end="")
    print(f"   ({result['bytes'] / 1e6:.0f} MB at {result['bytes_per_second'] / 1e9:.1f} GB/s)", flush=True)


if __name__ == "__main__":
    app.run(main)
