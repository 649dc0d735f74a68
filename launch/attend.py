"""See where a checkpoint looks: for every layer and head, how much each token attends to each one before it.

  uv run -m launch.attend --checkpoint=runs/quickstart --text="def add(self, other):" --png

Writes attention.html, which opens offline, and structure.svg, the network drawn from its config.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import flags

from launch import start

FLAGS = flags.FLAGS
LONGEST_PICTURE = 256  # Tokens: beyond that the squares are smaller than a pixel, and hovering is slow.
LONGEST_JSON = 2048  # Tokens: all weights are kept in memory, and their number grows with the square.


def define(_: Sequence[str]) -> None:
    """The flags of this program."""
    flags.DEFINE_string(
        "checkpoint", "runs/quickstart", "A run folder (newest checkpoint), or one of its steps as DIR@STEP."
    )
    flags.DEFINE_string("text", "def area(width, height):\n    return width *", "The text to read.")
    flags.DEFINE_string("out", ".", "The folder to write attention.html and structure.svg to.")
    flags.DEFINE_boolean("png", False, "Also write attention.png, a static picture.")
    flags.DEFINE_boolean(
        "json", False, "Print one JSON object with `tokens` and `weights[layer][head][query][key]` instead."
    )


def run() -> None:
    """Restore, record the attention weights on the text, draw them."""
    from configs.schema import ConfigError

    if not FLAGS.text:
        raise ConfigError("--text is empty: give it the text to read.")
    start.prepare_jax()
    from launch.look import count, look_at, read_ids
    from model import build
    from train.checkpoint import restore_params

    restored = restore_params(FLAGS.checkpoint)
    ids, longest = read_ids(restored.tokenizer, FLAGS.text), LONGEST_JSON if FLAGS.json else LONGEST_PICTURE
    if len(ids) > longest:
        raise ConfigError(
            f"--text has {len(ids)} tokens, more than {longest}: shorten it"
            + (f", or use --json (up to {LONGEST_JSON})." if longest < LONGEST_JSON else ".")
        )
    look = look_at(build(restored.config), restored.params, restored.tokenizer, ids)
    if FLAGS.json:
        print(json.dumps({"tokens": look.tokens, "weights": look.rounded()}))
        return

    from launch.views.attention import attention_page, attention_png
    from launch.views.structure import structure_svg

    out = pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    title = f"{restored.config.name}, step {restored.step}"
    command = "uv run -m launch.attend " + shlex.join(sys.argv[1:])
    structure = structure_svg(restored.config, count(restored.params))
    sinks = restored.config.model.attention_sinks  # Part of each row's weight then goes to no token.
    written = {
        "attention.html": attention_page(
            look.tokens, look.weights_LNTS, title=title, command=command, structure_svg=structure, sinks=sinks
        ).encode(),
        "structure.svg": structure.encode(),
    }
    if FLAGS.png:
        written["attention.png"] = attention_png(look.tokens, look.weights_LNTS, title=title, sinks=sinks)
    for name, content in written.items():
        (out / name).write_bytes(content)
        print(out / name)


if __name__ == "__main__":
    start.program("launch.attend", __doc__ or "", run, define, sys.argv)
