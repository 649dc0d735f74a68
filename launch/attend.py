"""See where a checkpoint looks: for every layer and head, how much each token attends to each one that it sees.

  uv run -m launch.attend --checkpoint=runs/quickstart --text="def add(self, other):" --png
  uv run -m launch.attend --checkpoint=runs/translate --text="Click the icon." --png          the alignment

Writes attention.html, which opens offline, and structure.svg, the network drawn from its config.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import start

if TYPE_CHECKING:
    from train.checkpoint import Restored

FLAGS = flags.FLAGS
LONGEST_PICTURE = 256  # Tokens: beyond that the squares are smaller than a pixel, and hovering is slow.
LONGEST_JSON = 2048  # Tokens: all weights are kept in memory, and their number grows with the square.


def define(_: Sequence[str]) -> None:
    """The flags of this program."""
    flags.DEFINE_string("checkpoint", "runs/quickstart", start.CHECKPOINT)
    flags.DEFINE_string("text", "def area(width, height):\n    return width *", "The text to read, or to translate.")
    flags.DEFINE_string(
        "target", None, "The translation to look at, for networks that translate; by default what they write greedily."
    )
    flags.DEFINE_string("out", ".", "The folder to write attention.html and structure.svg to.")
    flags.DEFINE_boolean("png", False, "Also write attention.png, a static picture.")
    flags.DEFINE_boolean(
        "json",
        False,
        "Print one JSON object with `tokens` and `weights[layer][head][query][key]` instead; of a translation, "
        "`source`, `read` and `written`, and the weights `alignment`, `encoder` and `decoder`.",
    )


def run() -> None:
    """Restore, record the attention weights on the text, draw them."""
    from configs.schema import ConfigError

    if not FLAGS.text:
        raise ConfigError("--text is empty: give it the text to read.")
    start.prepare_jax()
    from configs.convert import translates
    from launch.look import check_attends
    from train.checkpoint import restore_params

    restored = restore_params(FLAGS.checkpoint)
    check_attends(restored.config)
    if FLAGS.target is not None and not translates(restored.config):
        raise ConfigError(
            f"--target is for networks that translate, and this is --model.network={restored.config.model.network}."
        )
    (attend_translation if translates(restored.config) else attend_text)(restored)


def attend_text(restored: Restored) -> None:
    """Show how the tokens of a text attend to one another."""
    from configs.schema import ConfigError
    from launch.look import look_at, read_ids, rounded
    from model import build

    ids = read_ids(restored.tokenizer, FLAGS.text)
    check_size(len(ids))
    look = look_at(build(restored.config), restored.params, restored.tokenizer, ids)
    if FLAGS.json:
        print(json.dumps({"tokens": look.tokens, "weights": rounded(look.weights_LNTS)}))
        return

    from launch.views.attention import attention_page, attention_png

    if look.weights_LNTS.min() < 0:
        raise ConfigError(
            f"--model.attention={restored.config.model.attention} has weights below 0, which are no shares to draw: "
            "use --json."
        )
    settings: dict[str, Any] = {
        "title": f"{restored.config.name}, step {restored.step}",
        "sinks": restored.config.model.attention_sinks,  # Part of each row's weight then goes to no token.
        "causal": restored.config.model.network != "encoder",
    }
    structure = structure_of(restored)
    page = attention_page(look.tokens, look.weights_LNTS, command=command(), structure_svg=structure, **settings)
    png = attention_png(look.tokens, look.weights_LNTS, **settings) if FLAGS.png else None
    write(page, structure, png)


def attend_translation(restored: Restored) -> None:
    """Show from which words each word of a translation was written."""
    from launch.look import look_at_translation, rounded
    from model import build

    check_size(max(len(restored.tokenizer.encode(text)) + 1 for text in (FLAGS.text, FLAGS.target or "")))
    view = look_at_translation(
        build(restored.config), restored.params, restored.tokenizer, FLAGS.text, FLAGS.target,
        max_tokens=restored.config.data.length,
    )  # fmt: skip
    if FLAGS.json:
        named = {"alignment": view.alignment_LNTS, "encoder": view.encoder_LNSS, "decoder": view.decoder_LNTT}
        weights = {name: rounded(array) for name, array in named.items() if array is not None}
        print(json.dumps({"source": view.source, "read": view.read, "written": view.written, **weights}))
        return

    from launch.views.alignment import alignment_page, alignment_png

    title, sinks = f"{restored.config.name}, step {restored.step}", restored.config.model.attention_sinks
    structure = structure_of(restored)
    page = alignment_page(view, title=title, command=command(), structure_svg=structure, sinks=sinks)
    write(page, structure, alignment_png(view, title=title, sinks=sinks) if FLAGS.png else None)


def check_size(length: int) -> None:
    """Raises ConfigError for a text that is too long to be drawn or printed."""
    from configs.schema import ConfigError

    longest = LONGEST_JSON if FLAGS.json else LONGEST_PICTURE
    if length > longest:
        raise ConfigError(
            f"--text has {length} tokens, more than {longest}: shorten it"
            + (f", or use --json (up to {LONGEST_JSON})." if longest < LONGEST_JSON else ".")
        )


def command() -> str:
    """What was typed."""
    return "uv run -m launch.attend " + shlex.join(sys.argv[1:])


def structure_of(restored: Restored) -> str:
    """The network as a drawing."""
    from launch.look import count
    from launch.views.structure import structure_svg

    return structure_svg(restored.config, count(restored.params))


def write(page: str, structure: str, png: bytes | None) -> None:
    """Write the files and say where they are."""
    out = pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    written = {"attention.html": page.encode(), "structure.svg": structure.encode()}
    if png is not None:
        written["attention.png"] = png
    for name, content in written.items():
        (out / name).write_bytes(content)
        print(out / name)


if __name__ == "__main__":
    start.program("launch.attend", __doc__ or "", run, define, sys.argv)
