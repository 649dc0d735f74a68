"""See the choice and the look: type a text, see what could come next, choose it, and see where each head looks.

  uv run -m launch.playground --checkpoint=runs/quickstart
  uv run -m launch.playground --checkpoint=runs/quickstart --checkpoint=runs/alibi      two networks side by side
  uv run -m launch.playground --checkpoint=smollm2 --port=8123

Then open the address that it prints. Nothing leaves this machine. Ctrl-C ends it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from launch import start

FLAGS = flags.FLAGS


def define(_: Sequence[str]) -> None:
    """The flags of this program."""
    flags.DEFINE_multi_string(
        "checkpoint", ["runs/quickstart"], f"{start.CHECKPOINT} Given twice, the page shows both side by side."
    )
    flags.DEFINE_integer("port", 8000, "The port of 127.0.0.1 to answer on; 0 takes a free one.")


def run() -> None:
    """Restore, serve the page until interrupted."""
    from configs.schema import ConfigError

    if not 0 <= FLAGS.port < 65536:
        raise ConfigError(f"--port={FLAGS.port}: it must be from 0 to 65535.")
    start.prepare_jax()
    import socket

    import uvicorn
    from starlette.applications import Starlette

    from launch.playground.models import Models
    from launch.playground.routes import routes

    models = Models(FLAGS.checkpoint)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", FLAGS.port))
        except OSError:
            raise ConfigError(f"--port={FLAGS.port} is taken: choose another, or 0 for a free one.") from None
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
        settings = uvicorn.Config(Starlette(routes=routes(models)), log_level="warning", lifespan="off")
        uvicorn.Server(settings).run(sockets=[listening])


if __name__ == "__main__":
    start.program("launch.playground", __doc__ or "", run, define, sys.argv)
