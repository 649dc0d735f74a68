"""See the choice and the look: type a text, see what could come next, choose it, and see where each head looks.

  uv run -m launch.playground --checkpoint=runs/quickstart
  uv run -m launch.playground --checkpoint=runs/quickstart --compare=runs/alibi         two networks side by side
  uv run -m launch.playground --checkpoint=smollm2 --port=8123

Then open the address that it prints. It is launch.serve with a page at /: nothing leaves this machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from launch import serve, start

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from launch.playground.reading import Reader
    from launch.server.serving import Serving

FLAGS = flags.FLAGS


def define(arguments: Sequence[str]) -> None:
    """The flags of this program: those of the server, and one more."""
    serve.define(arguments)
    FLAGS.set_default("slots", 2)  # The page needs none: these are for programs that ask besides.
    flags.DEFINE_multi_string(
        "compare",
        [],
        "Another checkpoint to show beside it; may be given several times. Steps of runs are there anyway.",
    )


def run() -> int:
    """Restore, serve the page until told to stop."""
    return serve.run(page)


def page(serving: Serving) -> Sequence[BaseRoute]:
    """The page about what is served, as routes of its server; compiles what it will need meanwhile."""
    import threading

    from launch.playground.models import Models
    from launch.playground.reading import Reader
    from launch.playground.routes import routes
    from train.checkpoint import restore_params

    def restore(checkpoint: str) -> Reader:
        if checkpoint == FLAGS.checkpoint:
            return Reader(serving.config, serving.params, serving.tokenizer)
        restored = restore_params(checkpoint)
        return Reader(restored.config, restored.params, restored.tokenizer)

    models = Models([FLAGS.checkpoint, *FLAGS.compare], restore)
    # No daemon: a process that ends in the middle of compiling is aborted. So it stops once the server has.
    threading.Thread(target=models.prepare, args=(threading.main_thread().is_alive,)).start()
    return routes(models)


if __name__ == "__main__":
    start.program("launch.playground", __doc__ or "", run, define, sys.argv)
