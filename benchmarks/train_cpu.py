"""Training on this machine's CPU: tokens/s beside plain PyTorch modules of the same shape, in turns.

  uv run --extra parity python -m benchmarks.train_cpu                              all shapes and dtypes
  uv run --extra parity python -m benchmarks.train_cpu --shapes=char --dtypes=float32 --sides=seq2see,compiled

Each side is a process of its own that takes its model, compiles and warms up; then they train in turn, a few seconds
each, for some rounds. A step is forward, backward, clipping to norm 1 and AdamW, of the same network on the same
number of random tokens: ours is the step that `launch.train` runs. MFU is model FLOPs (6 per weight and token, and
attention) over the fastest matmul that XLA, NumPy or PyTorch reached in between.

Shapes are nanoGPT's: `char` is 6 layers, D 384, T 256, B 16; `char_small` 4 layers, D 128, T 64, B 12; `gpt2` 124M
parameters, T 256, B 2.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

from absl import app, flags

from benchmarks.sides import Side

SHAPES: dict[str, dict[str, int]] = {
    "char": {"layers": 6, "width": 384, "heads": 6, "length": 256, "batch": 16, "vocabulary": 65},
    "char_small": {"layers": 4, "width": 128, "heads": 4, "length": 64, "batch": 12, "vocabulary": 65},
    "gpt2": {"layers": 12, "width": 768, "heads": 12, "length": 256, "batch": 2, "vocabulary": 50_304},
    "tiny": {"layers": 1, "width": 16, "heads": 2, "length": 8, "batch": 2, "vocabulary": 11},  # Does it run?
}
SIDES = {
    "seq2see": "our train step",
    "torch": "PyTorch, eager",
    "compiled": "PyTorch, torch.compile",
}

FLAGS = flags.FLAGS
flags.DEFINE_list("shapes", ["char", "char_small", "gpt2"], f"Which shapes, of {', '.join(SHAPES)}.")
flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "What is computed with; weights are float32.")
flags.DEFINE_list("sides", ["seq2see", "torch"], f"Who trains, of {', '.join(SIDES)}.")
flags.DEFINE_integer("rounds", 7, "How often each side has its turn.", lower_bound=1)
flags.DEFINE_float("seconds", 2.0, "How long a turn is; a step that has begun is ended.", lower_bound=0)
flags.DEFINE_float("dropout", 0.0, "Dropout after the embedding and each sub-layer.", 0.0, 0.9)
flags.DEFINE_boolean("exact_gelu", False, "GELU by erf, as in nanoGPT, instead of by tanh, as in GPT-2.")
flags.DEFINE_string("torch_python", sys.executable, "The Python that has PyTorch.")
flags.DEFINE_multi_string("set", [], "A setting of our side, NAME=VALUE in JSON, such as model.layers='\"scan\"'.")
flags.DEFINE_boolean("json", False, "Print one JSON object.")


def start(name: str, shape: dict[str, int], dtype: str) -> Side:
    """A process that trains this shape when asked to."""
    if name == "seq2see":
        return Side(sys.executable, "benchmarks.train_cpu_seq2see", our_settings(shape, dtype))
    return Side(FLAGS.torch_python, "benchmarks.train_cpu_torch", torch_settings(shape, dtype, name == "compiled"))


def our_settings(shape: dict[str, int], dtype: str) -> dict[str, Any]:
    """What is changed of the preset gpt2_small, by flag."""
    return {
        "model.num_layers": shape["layers"], "model.width": shape["width"], "model.num_heads": shape["heads"],
        "model.biases": False, "model.activation": "gelu_exact" if FLAGS.exact_gelu else "gelu",
        "model.dropout": FLAGS.dropout, "model.dtype": dtype, "model.layers": "unroll",
        "tokenizer.vocab_size": shape["vocabulary"], "data.length": shape["length"],
        "train.batch_size": shape["batch"], "train.microbatches": 1,
        "optimizer.learning_rate": 1e-3, "optimizer.schedule": "constant", "optimizer.warmup_steps": 0,
        **{name: json.loads(value) for name, _, value in (setting.partition("=") for setting in FLAGS.set)},
    }  # fmt: skip


def torch_settings(shape: dict[str, int], dtype: str, compile: bool) -> dict[str, Any]:
    """The same for `benchmarks.train_cpu_torch`."""
    return {**shape, "dtype": dtype, "dropout": FLAGS.dropout, "exact_gelu": FLAGS.exact_gelu, "compile": compile}


def compare(shape: dict[str, int], dtype: str) -> dict[str, Any]:
    """Tokens/s of each side, [rounds] each, FLOPs per token, and the machine's FLOP/s in matmuls."""
    sides = {name: start(name, shape, dtype) for name in FLAGS.sides}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    peaks = []
    for _ in range(FLAGS.rounds):
        for name, side in sides.items():
            turn = side.ask("train", FLAGS.seconds)
            speeds[name].append(turn["steps"] * shape["batch"] * shape["length"] / turn["seconds"])
        peaks += [side.ask("peak", 0.2)["flops_per_second"] for side in sides.values()]
    for side in sides.values():
        side.close()
    return {
        "tokens_per_second": speeds,
        "peak_flops_per_second": max(peaks),
        "flops_per_token": sides["seq2see"].facts["flops_per_token"],
        "versions": {name: side.facts["version"] for name, side in sides.items()},
    }


def main(_: list[str]) -> None:
    """Measure and print."""
    for flag, asked, known in (("shapes", FLAGS.shapes, SHAPES), ("sides", FLAGS.sides, SIDES)):
        if not set(asked) <= set(known):
            raise app.UsageError(f"--{flag}={','.join(asked)}: known are {', '.join(known)}.")
    if "seq2see" not in FLAGS.sides:
        raise app.UsageError(f"--sides={','.join(FLAGS.sides)}: seq2see has to be among them.")
    results = {}
    if not FLAGS.json:
        print(f"{'shape, dtype':22} {'side':10} {'tokens/s':>9} {'range':>17} {'ratio':>6} {'GFLOP/s':>8} {'MFU':>5}")
    for shape in FLAGS.shapes:
        for dtype in FLAGS.dtypes:
            result = results[f"{shape}, {dtype}"] = compare(SHAPES[shape], dtype)
            if not FLAGS.json:
                show(f"{shape}, {dtype}", result)
    if FLAGS.json:
        print(json.dumps(results))


def show(name: str, result: dict[str, Any]) -> None:
    """The rows of a shape: medians over the rounds; the ratio is that of ours to the other side's."""
    medians = {side: statistics.median(speeds) for side, speeds in result["tokens_per_second"].items()}
    for side, speeds in result["tokens_per_second"].items():
        flops = medians[side] * result["flops_per_token"]
        spread = f"{min(speeds):,.0f}..{max(speeds):,.0f}"
        ratio, mfu = medians["seq2see"] / medians[side], flops / result["peak_flops_per_second"]
        row = f"{name:22} {side:10} {medians[side]:9,.0f} {spread:>17} {ratio:6.2f} {flops / 1e9:8.1f} {mfu:5.0%}"
        print(row, flush=True)


if __name__ == "__main__":
    app.run(main)
