"""Serve a checkpoint over HTTP, in OpenAI's protocol.

uv run -m launch.serve --checkpoint=runs/quickstart
curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" -d '{"prompt": "def ", "max_tokens": 32}'
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from absl import flags

from launch import start, weights

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from configs.schema import Config
    from launch.server.limits import Limits
    from launch.server.serving import Serving
    from train.checkpoint import Restored

FLAGS = flags.FLAGS
KEY = "SEQ2SEE_API_KEY"
USUAL_LENGTH = 2048  # The most that is made room for where nothing is said: a cache takes memory.


def define(_: Sequence[str]) -> None:
    """The flags of this program."""
    flags.DEFINE_string("checkpoint", "runs/quickstart", start.CHECKPOINT)
    flags.DEFINE_string("served_name", None, "What clients call the model; by default what --checkpoint says.")
    flags.DEFINE_string("host", "127.0.0.1", "The address to listen at; 0.0.0.0 lets other machines in, with a key.")
    flags.DEFINE_integer("port", 8000, "The port to listen at; 0 takes a free one.")
    flags.DEFINE_string(
        "api_key_file", None, f"A file with the key that clients must send; or put it into the environment as {KEY}."
    )
    flags.DEFINE_string("chat_template", None, "A file with a template in Jinja's language, for the checkpoint's own.")
    weights.define()
    flags.DEFINE_integer("slots", 8, "Texts that are written at the same time.")
    flags.DEFINE_integer("queue", 64, "Texts that may wait; beyond them the answer is 429 with Retry-After.")
    flags.DEFINE_integer(
        "length",
        None,
        f"The most tokens of a prompt and its text together; by default what the network was trained on, at most "
        f"{USUAL_LENGTH}.",
    )
    flags.DEFINE_integer("max_prompt", None, "The most tokens of a prompt; by default --length less one.")
    flags.DEFINE_integer("max_tokens", None, "The most tokens of an answer; by default --length less one.")
    flags.DEFINE_integer("max_body", 2**20, "The most bytes of a request.")
    flags.DEFINE_float("seconds", 300.0, "The longest that a request may take, waiting included.")
    flags.DEFINE_float("grace", 10.0, "When the server is stopped, requests have so many seconds to end in.")
    flags.DEFINE_boolean("access_log", False, "A line on stderr for each request.")


def run(routes: Callable[[Serving], Sequence[BaseRoute]] = lambda serving: ()) -> int:
    """Restore, listen, serve until told to stop.

    Args:
      routes: of other parts that are served besides.
    """
    weights.check()
    start.prepare_jax()
    from launch.server import listening
    from launch.server.app import make_app
    from launch.server.serving import serve_checkpoint, warm_up

    key = listening.read_key(FLAGS.api_key_file, KEY)
    listening.check_host(FLAGS.host, key, KEY)
    # The port is taken before the weights are read, which may take long.
    with listening.bind(FLAGS.host, FLAGS.port) as listener, weights.shared():
        restored = weights.as_asked(with_template(weights.restore(FLAGS.checkpoint)))
        name = FLAGS.served_name or FLAGS.checkpoint
        serving = serve_checkpoint(name, restored, limits(restored.config))
        warm_up(serving)
        app = make_app(serving, routes=routes(serving), key=key, hosts=listening.names_of(FLAGS.host))
        what = listening.described(listener, name, serving.limits, key)
        return listening.serve(app, serving, listener, what, access_log=FLAGS.access_log)


def limits(config: Config) -> Limits:
    """The limits that the flags set, for a network; raises ConfigError."""
    from configs.derived import max_length
    from launch.server.limits import Limits

    length = min(max_length(config), USUAL_LENGTH) if FLAGS.length is None else FLAGS.length
    most = {"max_prompt": FLAGS.max_prompt, "max_tokens": FLAGS.max_tokens}
    return Limits(
        slots=FLAGS.slots,
        queue=FLAGS.queue,
        length=length,
        **{flag: length - 1 if value is None else value for flag, value in most.items()},
        max_body=FLAGS.max_body,
        seconds=FLAGS.seconds,
        grace=FLAGS.grace,
    )


def with_template(restored: Restored) -> Restored:
    """The network with the chat template of the flag, if there is one; raises ConfigError."""
    import dataclasses
    import pathlib

    from configs.schema import ConfigError
    from train.data.chat import ChatTemplate

    if FLAGS.chat_template is None:
        return restored
    tokenizer = restored.tokenizer
    try:
        template = pathlib.Path(FLAGS.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat_template={FLAGS.chat_template} cannot be read: {error}.") from error
    names = {"eos_token": tokenizer.token_text(tokenizer.end_of_text)}
    own = ChatTemplate("", **names) if tokenizer.chat is None else tokenizer.chat
    tokenizer.chat = dataclasses.replace(own, chat_template=template)
    return restored


if __name__ == "__main__":
    start.program("launch.serve", __doc__ or "", run, define, sys.argv)
