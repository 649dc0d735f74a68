"""From an application to a port: who may reach it, how it starts, and how it stops without losing an answer."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import os
import pathlib
import signal
import socket
import sys

import uvicorn
from starlette.applications import Starlette

from configs.schema import ConfigError
from launch.server.limits import Limits
from launch.server.serving import Serving

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
SPARE_SECONDS = 5.0  # For what was broken off to tell so, once the grace is over.


def read_key(path: str | None, variable: str) -> str | None:
    """The key that clients must send: a file's first line, or the environment's; None: no key is asked for.

    Raises:
      ConfigError: the file cannot be read, or has nothing in it that can be a key.
    """
    key = os.environ.get(variable)
    if path is not None:
        try:
            key = pathlib.Path(path).read_text(encoding="utf-8").split("\n", 1)[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api_key_file={path} cannot be read: {error}.") from error
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        source = variable if path is None else f"--api_key_file={path}"
        raise ConfigError(f"{source} holds no key: one word of ASCII characters is needed.")
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; raises ConfigError for what is none."""
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback
    except ValueError:
        raise ConfigError(f"--host={host} is no address: give 127.0.0.1, or 0.0.0.0 for all that there are.") from None


def check_host(host: str, key: str | None, variable: str) -> None:
    """Raises ConfigError if anybody could use the server from another machine."""
    if not is_loopback(host) and key is None:
        raise ConfigError(
            f"--host={host} lets other machines in: give the key that they must have, with --api_key_file=FILE or in "
            f"{variable}."
        )


def names_of(host: str) -> tuple[str, ...] | None:
    """By what names a server may be called; None: any."""
    return LOOPBACK_NAMES if is_loopback(host) else None


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; raises ConfigError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(
            f"--port={port} at {host} cannot be had: {error}. Choose another; 0 takes a free one."
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(app: Starlette, serving: Serving, listener: socket.socket, what: str, *, access_log: bool = False) -> int:
    """Serve until SIGTERM or Ctrl-C, then let what runs end; returns the exit status: 1 if the engine failed.

    Args:
      what: the line for the log once requests are taken.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    if access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    server = Server(app, serving, what, access_log=access_log)
    # When it has stopped, the server raises the signal again, for whoever was there before it: nobody.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])
    serving.engine.close()
    return 1 if serving.engine.failure else 0


class Server(uvicorn.Server):
    """Says that it is there; when stopped, takes nothing new in and breaks off what is not done after a while."""

    def __init__(self, app: Starlette, serving: Serving, what: str, *, access_log: bool = False) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=access_log, lifespan="off",
            timeout_graceful_shutdown=math.ceil(serving.limits.grace + SPARE_SECONDS),
        )  # fmt: skip
        super().__init__(config)
        self._serving, self._what = serving, what
        serving.engine.on_failure = self.stop

    def stop(self) -> None:
        """As a signal would."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            print(self._what, file=sys.stderr, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what runs end, or break it off once the grace is over."""
        self._serving.engine.refuse()
        cutting = asyncio.get_running_loop().call_later(self._serving.limits.grace, self._serving.engine.cut)
        await super().shutdown(sockets)
        cutting.cancel()


def described(listener: socket.socket, name: str, limits: Limits, key: str | None) -> str:
    """The first line of the log: where, what, and within which limits."""
    return (
        f"{url_of(listener)} serves {name}: {limits.slots} texts at once and {limits.queue} waiting; prompts to "
        f"{limits.max_prompt} tokens, answers to {limits.max_tokens}, both to {limits.length}; requests to "
        f"{limits.max_body} bytes and {limits.seconds:g} s; {'with a key' if key else 'no key is asked for'}"
    )
