"""Write text with a checkpoint, and see the probabilities behind each word.

uv run -m launch.sample --checkpoint=runs/quickstart --prompt="def "
uv run -m launch.sample --checkpoint=runs/quickstart --prompt="import" --temperature=0 --table=5
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from absl import flags

from launch import start

FLAGS = flags.FLAGS


def define(_: Sequence[str]) -> None:
    """The flags of this program."""
    flags.DEFINE_string(
        "checkpoint", "runs/quickstart", "A run folder (newest checkpoint), or one of its steps as DIR@STEP."
    )
    flags.DEFINE_string("prompt", "def ", "The text to continue.")
    flags.DEFINE_float(
        "temperature", 0.8, "Logits are divided by it: below 1 safer, above 1 wilder; 0 takes the likeliest."
    )
    flags.DEFINE_integer("top_k", 0, "Draw from the k likeliest tokens only; 0 is all.")
    flags.DEFINE_float("top_p", 1.0, "Draw from the fewest tokens whose probabilities add up to p; 1 is all.")
    flags.DEFINE_float("min_p", 0.0, "Draw from tokens at least this times as likely as the likeliest; 0 is all.")
    flags.DEFINE_integer("num_samples", 1, "How many texts to write.")
    flags.DEFINE_integer("max_tokens", 128, "The most tokens to write in each.")
    flags.DEFINE_multi_string("stop", [], "End a text before this string; may be given several times.")
    flags.DEFINE_integer("seed", 0, "Seed of the first sample; each next one has the next seed.")
    flags.DEFINE_integer("table", 0, "After each token, show so many of the likeliest with their probabilities.")
    flags.DEFINE_boolean("json", False, "One JSON object per sample on stdout instead of text.")


def run() -> None:
    """Restore, write, show."""
    from configs.schema import ConfigError

    for name, least in (("num_samples", 1), ("max_tokens", 1), ("table", 0)):
        if getattr(FLAGS, name) < least:
            raise ConfigError(f"--{name}={getattr(FLAGS, name)}: it must be at least {least}.")
    start.prepare_jax()
    from launch.views.terminal import Console
    from model import build
    from model.generate import Sampling
    from train.checkpoint import restore_params
    from train.writing import write

    sampling = Sampling(FLAGS.temperature, FLAGS.top_k, FLAGS.top_p, FLAGS.min_p)
    restored = restore_params(FLAGS.checkpoint)
    prompts = [FLAGS.prompt] * FLAGS.num_samples
    console = None if FLAGS.json else Console(sys.stdout, table=FLAGS.table, prompts=prompts)
    samples = write(
        build(restored.config),
        restored.params,
        restored.tokenizer,
        prompts,
        sampling,
        max_tokens=FLAGS.max_tokens,
        seeds=range(FLAGS.seed, FLAGS.seed + FLAGS.num_samples),
        stop=FLAGS.stop,
        top=min(FLAGS.table or 5, restored.tokenizer.size),
        on_token=console.on_token if console else None,
    )
    if console:
        console.close()
        return
    for sample in samples:
        print(json.dumps(sample.to_dict()))


if __name__ == "__main__":
    start.program("launch.sample", __doc__ or "", run, define, sys.argv)
