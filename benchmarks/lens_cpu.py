"""Looking inside a network on this machine's CPU: what it costs beside a plain forward pass, ours and others' in turns.

  uv run --extra parity python -m benchmarks.lens_cpu
  uv run --extra parity python -m benchmarks.lens_cpu --sides=seq2see,transformers --rounds=3 --json

Random weights in the shape of SmolLM2-135M, one text. `forward` is a plain pass, `record` the same with the attention
weights of all layers and heads; of TransformerLens, which has to be installed for its side, by `run_with_cache` of the
patterns. Ours alone: `heads`, the logits of the last token without each head, for all heads in one call (of `--few`
tokens), and `separate`, one pass of a compiled network with such an edit, of which there would have to be as many.

Each side is a process of its own. Shown are the fastest of some rounds, and the least processor time, which other
programs on the machine disturb less.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from absl import app, flags

from benchmarks.sides import SMOLLM2, Side

SIDES = {
    "seq2see": ("forward", "record", "separate", "heads"),
    "transformers": ("forward", "record"),
    "transformer_lens": ("forward", "record"),
}

FLAGS = flags.FLAGS
flags.DEFINE_list("sides", ["seq2see", "transformers"], f"Who looks, of {', '.join(SIDES)}.")
flags.DEFINE_integer("length", 128, "Tokens of the text.", lower_bound=2)
flags.DEFINE_integer("few", 8, "Tokens of the text whose heads are knocked out; 0 leaves that out.", lower_bound=0)
flags.DEFINE_integer("rounds", 5, "How often each side has its turn.", lower_bound=1)
flags.DEFINE_string("torch_python", sys.executable, "The Python that has PyTorch, transformers and TransformerLens.")
flags.DEFINE_boolean("json", False, "Print one JSON object.")


def start(name: str, settings: dict[str, Any]) -> Side:
    """A process that looks when asked to."""
    if name == "seq2see":
        return Side(sys.executable, "benchmarks.lens_cpu_seq2see", settings)
    return Side(FLAGS.torch_python, "benchmarks.lens_cpu_torch", {**settings, "lens": name == "transformer_lens"})


def main(_: list[str]) -> None:
    """Measure and print."""
    if set(FLAGS.sides) - set(SIDES):
        raise app.UsageError(f"--sides={','.join(FLAGS.sides)}: any of {', '.join(SIDES)}.")
    settings = {**SMOLLM2, "length": FLAGS.length, "few": FLAGS.few, "dtype": "float32", "set": {}}
    sides = {name: start(name, settings) for name in FLAGS.sides}
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in sides}
    for round in range(FLAGS.rounds):
        for name, side in sides.items():
            for what in SIDES[name]:
                if what in ("separate", "heads") and (not FLAGS.few or (what == "heads" and round)):
                    continue  # All heads take minutes, and are their own average.
                found[name].setdefault(what, []).append(side.ask(what, 1))
    for side in sides.values():
        side.close()
    if FLAGS.json:
        print(json.dumps({"sides": found, "facts": {name: side.facts for name, side in sides.items()}}))
        return
    print(f"{'side':17} {'what':9} {'ms':>8} {'x forward':>10} {'processor ms':>13} {'x forward':>10}")
    for name, measured in found.items():
        least = {
            what: [min(turn[of] for turn in turns) for of in ("seconds", "processor")]
            for what, turns in measured.items()
        }
        for what, (seconds, processor) in least.items():
            ratios = [value / plain for value, plain in zip((seconds, processor), least["forward"], strict=True)]
            print(
                f"{name:17} {what:9} {seconds * 1e3:8.1f} {ratios[0]:10.2f} {processor * 1e3:13.1f} {ratios[1]:10.2f}"
            )
        if "heads" in least:
            times = SMOLLM2["layers"] * SMOLLM2["heads"]
            ratio = times * least["separate"][1] / least["heads"][1]
            print(f"{times} separate passes take {ratio:.1f} times the processor time of one call for all heads")


if __name__ == "__main__":
    app.run(main)
