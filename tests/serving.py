"""A tiny network that is served on a port of this machine, for tests of clients."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence

import httpx
from starlette.routing import BaseRoute

from configs import schema
from configs.schema import Config
from launch.server import listening
from launch.server.app import make_app
from launch.server.limits import Limits
from launch.server.serving import Serving, serve_checkpoint
from model import build
from tests.tiny import random_params, tiny
from train.checkpoint import Restored
from train.data.chat import ChatTemplate
from train.data.sections import Corpus, Section
from train.data.tokenizer import Tokenizer, make_tokenizer

TEXT = " the cat sat on a mat and saw another dog run from its own shadow while it was raining 猫 坐 在 垫 子 上 . , !"
TEMPLATE = ChatTemplate(
    "{% for message in messages %} {{ message.role }} , {{ message.content }} !{% endfor %}"
    "{% if add_generation_prompt %} the{% endif %}"
)
LIMITS = Limits(slots=4, queue=8, length=128, max_prompt=96, max_tokens=100, max_body=20_000, seconds=60, grace=1)


def words_tokenizer(chat: ChatTemplate | None = TEMPLATE) -> Tokenizer:
    """One token for each word of TEXT with the space before it."""
    sections = [Section(TEXT, last=True)]
    tokenizer = make_tokenizer(schema.Tokenizer(source="words"), Corpus(sections, sections, "", ""))
    return Tokenizer.from_json(tokenizer.to_json(), chat=chat)


def tiny_serving(limits: Limits = LIMITS, tokenizer: Tokenizer | None = None, **model: object) -> Serving:
    """A network with random weights, served as `tiny`; its texts are words in no order."""
    tokenizer = tokenizer or words_tokenizer()
    config = sized(tiny(**model), tokenizer.size)
    return serve_checkpoint("tiny", Restored(config, random_params(build(config)), tokenizer, 0), limits)


def sized(config: Config, size: int) -> Config:
    """The config with so many tokens."""
    return dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, vocab_size=size))


@contextlib.contextmanager
def running(serving: Serving, *, key: str | None = None, routes: Sequence[BaseRoute] = ()) -> Iterator[str]:
    """The address of a server, which runs in a thread of this process."""
    with listening.bind("127.0.0.1", 0) as listener:
        url = listening.url_of(listener)
        app = make_app(serving, key=key, hosts=listening.names_of("127.0.0.1"), routes=routes)
        server = listening.Server(app, serving, url)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_for(url)
            yield url
        finally:
            server.stop()
            thread.join()
            serving.engine.close()


def wait_for(url: str) -> None:
    """Returns when the server answers."""
    transport = httpx.HTTPTransport(retries=8)
    with httpx.Client(transport=transport, trust_env=False) as client:
        assert client.get(f"{url}/health").json() == {"status": "ok"}
