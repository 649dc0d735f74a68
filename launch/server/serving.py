"""What is served: a network, its tokenizer, and the thread that writes with it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from configs.derived import fills_in, longest_text, translates
from configs.schema import Config, ConfigError
from launch.server.engine_thread import EngineThread
from launch.server.errors import ApiError
from launch.server.limits import Limits
from launch.server.metrics import Metrics
from train.checkpoint import Restored
from train.data.tokenizer import Tokenizer

TOP = 20  # The most likeliest tokens that a request may ask for at each place.


@dataclasses.dataclass(frozen=True)
class Serving:
    """One network that is being served; routes find it as `request.app.state.serving`.

    Attributes:
      name: what `model` is in requests.
      created: seconds since 1970 when it was loaded.
      reads_grammars: whether requests may say what a text has to be.
    """

    name: str
    config: Config
    module: Any
    params: Any
    tokenizer: Tokenizer
    engine: EngineThread
    metrics: Metrics
    limits: Limits
    created: int
    reads_grammars: bool = False

    def check_name(self, name: str | None) -> None:
        """Raises ApiError if a request asks for another model than this one."""
        if name not in (None, self.name):
            raise ApiError(
                404, f"model: {name!r} is not served here, but {self.name!r} is.",
                param="model", code="model_not_found",
            )  # fmt: skip


def serve_checkpoint(
    name: str, restored: Restored, limits: Limits, on_failure: Callable[[], None] = lambda: None
) -> Serving:
    """Starts the engine for a restored network.

    Raises:
      ConfigError: a network that does not write text, or limits that it cannot keep.
    """
    from model import build
    from model.generate.engine import Engine
    from train.writing import grammars_of

    config = restored.config
    if fills_in(config):
        raise ConfigError(
            f"--checkpoint={name} is an encoder, which fills gaps in and does not write: use launch.sample."
        )
    longest = longest_text(config)
    if longest and limits.length > longest:
        raise ConfigError(f"--length={limits.length} is more than the {longest} tokens that {name} has positions for.")
    module = build(config)
    try:
        grammars = grammars_of(restored.tokenizer, config)
    except ConfigError:  # Their package is not there; who asks for one is told so.
        grammars = None
    engine = Engine(
        module, restored.params, slots=limits.slots, length=limits.length, top=min(TOP, restored.tokenizer.size),
        grammars=grammars,
    )  # fmt: skip
    thread = EngineThread(engine, room=limits.room, on_failure=on_failure)
    return Serving(
        name, config, module, restored.params, restored.tokenizer, thread, Metrics(lambda: thread.stats), limits,
        int(time.time()), grammars is not None,
    )  # fmt: skip


def warm_up(serving: Serving) -> None:
    """Let everything be compiled before the first client comes, by a request of each kind."""
    from model.generate.engine import Request
    from model.generate.grammar import Grammar

    start = (serving.tokenizer.end_of_text,)
    source = start if translates(serving.config) else None
    requests = [Request(start, max_tokens=2, ends=serving.tokenizer.ends, source=source)]
    if source is None:
        requests.append(dataclasses.replace(requests[0], prompt_logprobs=True))
    if serving.reads_grammars:
        requests.append(dataclasses.replace(requests[0], grammar=Grammar(regex=".*")))

    async def write() -> None:
        for request in requests:
            async with serving.engine.open([request]) as stream:
                async for _ in stream:
                    pass

    asyncio.run(write())
