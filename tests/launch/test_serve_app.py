"""The server around the engine: who may use it, what it says about itself, and the thread that owns the engine.

The engine here is a stand-in that counts, so that a test decides what happens when.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from types import SimpleNamespace

import httpx
import pytest

from configs.schema import ConfigError
from launch.server import listening
from launch.server.app import make_app
from launch.server.engine_thread import EngineThread, OverloadError, StoppingError
from launch.server.limits import Limits
from launch.server.metrics import Metrics
from launch.server.serving import Serving


@dataclasses.dataclass
class Counting:
    """An engine whose texts are 0, 1, 2 and so on, one token a step, while `gate` is open."""

    gate: threading.Event = dataclasses.field(default_factory=threading.Event)
    running: dict = dataclasses.field(default_factory=dict)
    cancelled: list = dataclasses.field(default_factory=list)
    tickets: int = 0
    error: Exception | None = None

    def submit(self, request):
        if request.max_tokens < 1:
            raise ConfigError("--max_tokens=0: it must be at least 1.")
        self.tickets += 1
        self.running[self.tickets] = (request.max_tokens, 0)
        return self.tickets

    def cancel(self, ticket):
        self.cancelled.append(ticket)
        self.running.pop(ticket, None)

    def step(self):
        self.gate.wait(60)
        if self.error:
            raise self.error
        events = []
        for ticket, (left, id) in list(self.running.items()):
            finish = "length" if left == 1 else ""
            events.append(SimpleNamespace(ticket=ticket, tokens=(SimpleNamespace(id=id, finish=finish),), prompt=None))
            self.running[ticket] = (left - 1, id + 1)
            if finish:
                del self.running[ticket]
        return events

    @property
    def busy(self):
        return bool(self.running)

    @property
    def stats(self):
        active = len(self.running)
        return SimpleNamespace(
            queued=0, active=active, slots=4, cache_tokens=0, cache_capacity=9, prefix_hits=0, generated=7
        )


def wants(max_tokens):
    return SimpleNamespace(max_tokens=max_tokens)


@pytest.fixture
def engine():
    engine = Counting()
    engine.gate.set()
    return engine


@pytest.fixture
def thread(engine):
    thread = EngineThread(engine, room=4)
    yield thread
    engine.gate.set()
    thread.close()


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


async def written(thread, *lengths):
    texts = [[] for _ in lengths]
    async with thread.open([wants(length) for length in lengths]) as stream:
        async for number, event in stream:
            texts[number] += [token.id for token in event.tokens]
    return texts


def test_each_request_gets_its_own_tokens_and_all_of_them(thread):
    async def all_of_them():
        return await asyncio.gather(*(written(thread, n, n + 1) for n in (3, 50)))

    assert asyncio.run(all_of_them()) == [[list(range(n)), list(range(n + 1))] for n in (3, 50)]
    assert thread.taken == 0


def test_more_than_there_is_room_for_is_refused_as_a_whole(thread, engine):
    async def overload():
        engine.gate.clear()
        async with thread.open([wants(2)] * 3) as stream:
            with pytest.raises(OverloadError) as refused:
                thread.open([wants(2)] * 2)
            assert refused.value.retry_after >= 1
            engine.gate.set()
            assert len([event async for event in stream]) == 6
        return await written(thread, 2, 2, 2, 2)

    assert len(asyncio.run(overload())) == 4


def test_leaving_early_cancels_what_still_runs(thread, engine):
    async def leave():
        async with thread.open([wants(1), wants(10**6)]) as stream:
            async for number, _ in stream:
                if number == 1:
                    break

    asyncio.run(leave())
    until(lambda: not thread.taken)
    assert engine.cancelled == [2]


def test_what_the_engine_refuses_is_raised_and_takes_no_room(thread, engine):
    with pytest.raises(ConfigError, match="max_tokens"):
        asyncio.run(written(thread, 1, 0))
    assert engine.cancelled == [1]
    assert thread.taken == 0
    assert asyncio.run(written(thread, 1)) == [[0]]


def test_an_engine_that_fails_ends_all_streams_and_says_so(engine):
    told = threading.Event()
    thread = EngineThread(engine, room=4, on_failure=told.set)
    engine.error = RuntimeError("out of memory")
    with pytest.raises(StoppingError, match="failed"):
        asyncio.run(written(thread, 3))
    assert told.wait(60)
    assert thread.failure is engine.error
    with pytest.raises(StoppingError):
        asyncio.run(written(thread, 3))
    thread.close()


def test_stopping_refuses_new_requests_and_breaks_off_those_that_run(thread):
    async def stop():
        async with thread.open([wants(10**6)]) as stream:
            await anext(stream)
            thread.refuse()
            with pytest.raises(StoppingError):
                thread.open([wants(1)])
            thread.cut()
            async for _ in stream:
                pass

    with pytest.raises(StoppingError, match="before the answer was complete"):
        asyncio.run(stop())
    until(lambda: not thread.taken)


def ask(thread, path, *, key=None, hosts=None, headers=None, method="GET"):
    network = dict.fromkeys(("config", "module", "params", "tokenizer"))
    serving = Serving(
        "tiny", **network, engine=thread, metrics=Metrics(lambda: thread.stats), limits=Limits(), created=1
    )

    async def asking():
        transport = httpx.ASGITransport(app=make_app(serving, key=key, hosts=hosts))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(asking())


def test_the_model_is_described(thread):
    assert [model["id"] for model in ask(thread, "/v1/models").json()["data"]] == ["tiny"]
    assert ask(thread, "/v1/models/tiny").json()["id"] == "tiny"
    missing = ask(thread, "/v1/models/large")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_metrics_are_those_of_the_engine(thread):
    answer = ask(thread, "/metrics")
    assert "seq2see_generated_total 7.0" in answer.text
    assert "seq2see_cache_capacity 9.0" in answer.text
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("path", ["/nothing", "/v1/models"])
def test_what_the_framework_refuses_is_told_as_all_errors_are(thread, path):
    answer = ask(thread, path, method="PUT")
    assert answer.status_code in (404, 405)
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_without_the_key_only_health_answers(thread):
    assert ask(thread, "/health", key="secret").status_code == 200
    for given in (None, {"Authorization": "Bearer wrong"}):
        refused = ask(thread, "/metrics", key="secret", headers=given)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "secret" not in refused.text
    assert ask(thread, "/metrics", key="secret", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_another_host_name_is_refused(thread):
    assert ask(thread, "/health", hosts=["localhost"], headers={"Host": "evil.example"}).status_code == 400
    assert ask(thread, "/health", hosts=["localhost"]).status_code == 200


def test_only_with_a_key_other_machines_are_let_in():
    for host in ("127.0.0.1", "::1", "localhost"):
        listening.check_host(host, None, "KEY")
    listening.check_host("0.0.0.0", "s3cret", "KEY")
    for host in ("0.0.0.0", "::", "192.168.0.1"):
        with pytest.raises(ConfigError, match=f"--host={host} lets other machines in"):
            listening.check_host(host, None, "KEY")
    with pytest.raises(ConfigError, match="--host=here is no address"):
        listening.check_host("here", None, "KEY")


def test_a_key_is_one_word(tmp_path, monkeypatch):
    assert listening.read_key(None, "A_KEY") is None
    (tmp_path / "key").write_text("s3cret\n")
    assert listening.read_key(str(tmp_path / "key"), "A_KEY") == "s3cret"
    for wrong in ("", "two words", "schlüssel"):
        monkeypatch.setenv("A_KEY", wrong)
        with pytest.raises(ConfigError, match="A_KEY holds no key"):
            listening.read_key(None, "A_KEY")
    with pytest.raises(ConfigError, match="cannot be read"):
        listening.read_key(str(tmp_path / "none"), "A_KEY")


def test_a_port_that_is_taken_is_named():
    with listening.bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = int(listening.url_of(taken).rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"--port={port}"):
            listening.bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="--port=99999"):
        listening.bind("127.0.0.1", 99999)


@pytest.mark.parametrize(
    ("name", "value"),
    [("slots", 0), ("queue", -1), ("length", 1), ("max_prompt", 1024), ("seconds", 0.0), ("grace", -1)],
)
def test_limits_that_nothing_could_be_served_with_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"--{name}={value:g}: (it must be at least|with)"):
        Limits(**{name: value})
