"""Guessing tokens ahead: tokens per second beside writing one at a time, greedily, in turns.

  uv run python -m benchmarks.speculation --checkpoint=smollm2
  uv run python -m benchmarks.speculation --checkpoint=runs/quickstart --draft=runs/small --guesses=2 --guesses=4 --json

Two kinds of text: *copied*, a passage of the running Python's own library that stands twice in the prompt and begins a
third time, and *free*, what follows the passage. Each way to write continues each of `--texts` prompts in its turn; the
fastest of some rounds counts. That the texts are the same is checked.
"""

from __future__ import annotations

import difflib
import inspect
import json
import pathlib
import time
from typing import Any

from absl import app, flags

from launch import start

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", "runs/quickstart", start.CHECKPOINT)
flags.DEFINE_string("draft", "", "A smaller checkpoint that guesses as well.")
flags.DEFINE_string("weights", "", "As launch.sample has it.")
flags.DEFINE_multi_integer("guesses", [4], "Tokens guessed at a time; each number is a way to write.")
flags.DEFINE_integer("passage", 60, "Tokens of a passage.", lower_bound=8)
flags.DEFINE_integer("tokens", 64, "Tokens to write.", lower_bound=1)
flags.DEFINE_integer("texts", 4, "Prompts of each kind.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "Turns of each way to write.", lower_bound=1)
flags.DEFINE_boolean("json", False, "Print one JSON object.")


def prompts_of(tokenizer: Any) -> dict[str, list[list[int]]]:
    """The prompts of each kind, as tokens."""
    tokens = tokenizer.prompt(pathlib.Path(inspect.getfile(difflib)).read_text(encoding="utf-8"))
    n, begun = FLAGS.passage, 8
    passages = [tokens[n * number : n * (number + 1)] for number in range(1, FLAGS.texts + 1)]
    return {"copied": [[*p, *p, *p[:begun]] for p in passages], "free": passages}


def measure(
    module: Any, params: Any, ends: list[int], draft: Any, prompts: list[list[int]]
) -> dict[str, dict[str, float]]:
    """Tokens per second of each way to write, and what became of the guesses."""
    import numpy as np

    from model.generate import Draft, Lookup, Sampling, Tally, generate, speculate

    ways: dict[str, Any] = {"one at a time": None}
    for count in FLAGS.guesses:
        ways[f"looked up, {count}"] = Lookup(count)
        if draft:
            ways[f"draft, {count}"] = Draft(draft[0], draft[1], count)
    seconds = {way: float("inf") for way in ways}
    tallies = {way: Tally() for way in ways}
    texts: dict[str, list[list[int]]] = {}
    for turn in range(FLAGS.rounds + 1):  # The first compiles.
        for way, guess in ways.items():
            tallies[way], texts[way] = Tally(), []
            began = time.perf_counter()
            for prompt in prompts:
                settings: dict[str, Any] = {"max_tokens": FLAGS.tokens, "seeds": [0], "ends": ends}
                tally = Tally()
                if guess:
                    settings |= {"guess": guess, "tally": tally}
                write: Any = speculate if guess else generate
                chunks = write(module, params, [prompt], Sampling(temperature=0), **settings)
                texts[way].append(np.concatenate([chunk.tokens_BC[0] for chunk in chunks]).tolist())
                for name in ("guessed", "kept", "rounds"):
                    setattr(tallies[way], name, getattr(tallies[way], name) + getattr(tally, name))
            if turn:
                seconds[way] = min(seconds[way], time.perf_counter() - began)
    plain, written = texts["one at a time"], FLAGS.tokens * len(prompts)
    return {
        way: {
            "tokens_per_second": written / seconds[way],
            "ratio": seconds["one at a time"] / seconds[way],
            "kept": tallies[way].kept / max(1, tallies[way].guessed),
            "tokens_per_pass": 1 + tallies[way].kept / tallies[way].rounds if tallies[way].rounds else 1.0,
            "same_texts": sum(a == b for a, b in zip(plain, texts[way], strict=True)),
        }
        for way in ways
    }


def main(_: list[str]) -> None:
    """Measure and print."""
    start.prepare_jax()
    from model import build, packed
    from train.checkpoint import restore_params

    restored = restore_params(FLAGS.checkpoint)
    module: Any = build(restored.config)
    params, draft = packed.pack(module, restored.params, FLAGS.weights), None
    if FLAGS.draft:
        smaller = restore_params(FLAGS.draft)
        draft = build(smaller.config), packed.pack(build(smaller.config), smaller.params, FLAGS.weights)
    results = {
        kind: measure(module, params, [-1], draft, prompts) for kind, prompts in prompts_of(restored.tokenizer).items()
    }
    if FLAGS.json:
        print(json.dumps(results))
        return
    print(f"{'text':8} {'way':16} {'tokens/s':>9} {'ratio':>6} {'kept':>6} {'tokens/pass':>12} {'same texts':>11}")
    for kind, ways in results.items():
        for way, found in ways.items():
            row = f"{kind:8} {way:16} {found['tokens_per_second']:9.1f} {found['ratio']:6.2f} {found['kept']:6.0%}"
            print(f"{row} {found['tokens_per_pass']:12.2f} {found['same_texts']:8}/{FLAGS.texts}")


if __name__ == "__main__":
    app.run(main)
