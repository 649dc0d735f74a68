"""Look inside a checkpoint: where each head looks, how each token was expected, which part decides.

  uv run -m launch.attend --checkpoint=runs/quickstart --text="def add(self, other):" --png
  uv run -m launch.attend --checkpoint=runs/translate --text="Click the icon." --png          the alignment
  uv run -m launch.attend --checkpoint=smollm2 --text="The dog barked because it saw a cat" --word=it --png
  uv run -m launch.attend --checkpoint=smollm2 --view=lens --text="The capital of France is"
  uv run -m launch.attend --checkpoint=smollm2 --view=patch --text="The capital of France is" \\
      --other="The capital of Italy is"

Writes attention.html (or tokens.html and so on), which opens offline, and structure.svg, the network drawn from its
config.
"""

from __future__ import annotations

import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from launch import start

if TYPE_CHECKING:
    from launch.views.view import View

FLAGS = flags.FLAGS
VIEWS = {
    "heads": "all heads, one at a time as lines and as a heat map",
    "model": "all heads at a glance, with what each looks for",
    "grid": "one head as a table (--layer, --head)",
    "tokens": "the text colored by how well each token was expected",
    "lens": "what would be predicted after each layer",
    "patch": "where in the network --text and --other come to differ",
    "knockout": "how much worse all texts are predicted without each head",
    "evolution": "how heads came to be, checkpoint by checkpoint",
    "alignment": "of a translator: from which words each word was written",
}
TEXT = "def area(width, height):\n    return width *"
_OF_VIEWS = {  # Flags that are of some views only; None: of what is shown by default.
    "other": ("patch",), "layer": ("grid",), "texts": ("knockout",), "target": ("alignment", None),
    "word": ("heads", "grid", "alignment", None),
}  # fmt: skip
PROBED = ("model", "knockout", "evolution")


def define(_: Sequence[str]) -> None:
    """The flags of this program."""
    flags.DEFINE_string("checkpoint", "runs/quickstart", start.CHECKPOINT)
    flags.DEFINE_enum(
        "view", None, list(VIEWS),
        "What to see: " + "; ".join(f"{name}, {what}" for name, what in VIEWS.items())
        + ". By default alignment of a translator, else heads.",
    )  # fmt: skip
    flags.DEFINE_multi_string(
        "text", None,
        "The text to read, or to translate; for knockout as often as there are texts. By default a line of Python; for "
        f"{', '.join(PROBED)} random tokens, twice the same, which show what looks back.",
    )  # fmt: skip
    flags.DEFINE_string("texts", None, "For knockout: a file with a text on each line.")
    flags.DEFINE_string("other", None, "For patch: the other text, of as many tokens.")
    flags.DEFINE_string(
        "target", None, "The translation to look at, for networks that translate; by default what they write greedily."
    )
    flags.DEFINE_string(
        "word", None,
        "For heads and grid: a word of the text; shown is the head in which it looks hardest at another one. For "
        "alignment: a word of the translation; shown is what it was written from. Where a word stands several times, "
        "the last is meant.",
    )  # fmt: skip
    flags.DEFINE_integer("layer", None, "For grid: the layer of the head, from 0; by default a telling head is shown.")
    flags.DEFINE_integer("head", None, "For grid: the head in its layer, from 0.")
    flags.DEFINE_string("out", ".", "The folder to write to.")
    flags.DEFINE_boolean("png", False, "Also write a static picture, as PNG.")
    flags.DEFINE_boolean("svg", False, "Also write a static picture, as SVG.")
    flags.DEFINE_boolean(
        "json",
        False,
        "Print the numbers as one JSON object instead: of heads `tokens` and `weights[layer][head][query][key]`; of a "
        "translation `source`, `read` and `written`, and the weights `alignment`, `encoder` and `decoder`.",
    )


def run() -> None:
    """Restore, look, write what was seen."""
    check()
    start.prepare_jax()
    from launch.pictures import Asked, see
    from launch.progress import progress

    head = None if FLAGS.layer is None else (FLAGS.layer, FLAGS.head)
    command = " ".join(["uv run -m launch.attend", *map(quoted, sys.argv[1:])])
    with progress() as on_done:
        asked = Asked(
            texts(), target=FLAGS.target, other=FLAGS.other, head=head, word=FLAGS.word, drawn=not FLAGS.json,
            on_done=on_done if sys.stderr.isatty() else None,
        )  # fmt: skip
        view = see(FLAGS.checkpoint, FLAGS.view, asked, command)
    if FLAGS.json:
        print(view.json())
    else:
        write(view)


def check() -> None:
    """Raises ConfigError for flags that do not go together."""
    from configs.schema import ConfigError

    if "" in (FLAGS.text or []):
        raise ConfigError("--text is empty: give it the text to read.")
    if FLAGS.view != "knockout" and len(FLAGS.text or []) > 1:
        raise ConfigError(f"--text was given {len(FLAGS.text)} times: only --view=knockout is of several texts.")
    if (FLAGS.layer is None) != (FLAGS.head is None):
        raise ConfigError("--layer and --head name one head together: give both, or none.")
    for flag, views in _OF_VIEWS.items():
        if FLAGS[flag].value is not None and FLAGS.view not in views:
            raise ConfigError(f"--{flag} is for --view={', '.join(view for view in views if view)}.")
    if FLAGS.word is not None and FLAGS.layer is not None:
        raise ConfigError(
            "--word picks the head in which that word looks hardest, --layer and --head another: leave one out."
        )


def texts() -> list[str]:
    """What is to be read; nothing for what has a text of its own.

    Raises ConfigError for a file without texts.
    """
    from configs.schema import ConfigError

    given = list(FLAGS.text or [])
    if FLAGS.texts is not None:
        lines = pathlib.Path(FLAGS.texts).read_text("utf-8").splitlines()
        given += [line for line in lines if line.strip()]
        if not given:
            raise ConfigError(f"--texts={FLAGS.texts} has no line with a text.")
    return given or ([] if FLAGS.view in PROBED else [TEXT])


def quoted(argument: str) -> str:
    """A flag as one would type it: only its value in quotes, in double ones where that is enough."""
    name, equals, value = argument.partition("=")
    if equals and shlex.quote(value) != value and not set(value) & set('"$`\\!'):
        return f'{name}="{value}"'
    return shlex.quote(argument)


def write(view: View) -> None:
    """Write the files and say where they are."""
    out = pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    stem = "attention" if view.name in ("heads", "alignment") else view.name
    written = {f"{stem}.html": view.html().encode(), "structure.svg": view.about.structure_svg.encode()}
    if FLAGS.png:
        written[f"{stem}.png"] = view.png()
    if FLAGS.svg:
        written[f"{stem}.svg"] = view.svg().encode()
    for name, content in written.items():
        (out / name).write_bytes(content)
        print(out / name)


if __name__ == "__main__":
    start.program("launch.attend", __doc__ or "", run, define, sys.argv)
