"""launch.serve under load: many clients at once, some of which hang up; every answer is compared with itself alone.

  uv run python -m benchmarks.serve_load --checkpoint=runs/quickstart
  uv run python -m benchmarks.serve_load --checkpoint=smollm2 --clients=64 --seconds=120 --json

A set of requests (prompts, settings and seeds) is first answered one at a time. Then each of the clients asks for one
of them after another, whole or as a stream, and at times goes away in the middle. An answer that differs from the one
alone is wrong; a request that ends neither with an answer nor with 429 is lost. The server's memory is read each
second, and after all have gone, no slot may be taken. The exit status is 1 if anything of this is not so.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import pathlib
import random
import re
import subprocess
import sys
import time
from typing import Any

import httpx
from absl import app, flags

PROMPTS = (
    "def ", "import", "The capital of France is", "class Parser:\n", "我今天早上喝了一杯", "# ", "Once upon a time",
    "for line in lines:\n    if line", "1, 2, 3,", "", "\n\n", "raise ValueError(",
)  # fmt: skip
KEPT = 1.1  # Memory may grow by so much between the first quarter of the time and the last.

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", "runs/quickstart", "What to serve.")
flags.DEFINE_integer("clients", 64, "Clients at once.", lower_bound=1)
flags.DEFINE_float("seconds", 120.0, "How long they ask.")
flags.DEFINE_float("hang_up", 0.2, "The share of requests whose client goes away.", lower_bound=0, upper_bound=1)
flags.DEFINE_integer("requests", 40, "Different requests.", lower_bound=1)
flags.DEFINE_integer("tokens", 48, "The most tokens of an answer.", lower_bound=1)
flags.DEFINE_integer("slots", 8, "Texts that the server writes at once.", lower_bound=1)
flags.DEFINE_integer("queue", 40, "Texts that may wait; with more clients some are told to come again.", lower_bound=0)
flags.DEFINE_integer("length", 512, "The most tokens of a prompt and its text together.", lower_bound=256)
flags.DEFINE_boolean("json", False, "Print one JSON object.")


@dataclasses.dataclass
class Counts:
    """What became of the requests of the load."""

    answered: int = 0
    hung_up: int = 0
    refused: int = 0  # Told to come again.
    wrong: int = 0
    lost: int = 0
    tokens: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)  # From a request to the end of its answer.
    first: list[float] = dataclasses.field(default_factory=list)  # To the first piece of a stream.
    problems: list[str] = dataclasses.field(default_factory=list)


def requests(count: int, tokens: int) -> list[dict[str, Any]]:
    """Requests of all kinds, the same each time."""
    chance = random.Random(0)
    made: list[dict[str, Any]] = []
    for seed in range(count):
        body: dict[str, Any] = {
            "prompt": chance.choice(PROMPTS) * chance.choice((1, 1, 1, 8)), "max_tokens": chance.randint(1, tokens),
            "seed": seed, "temperature": chance.choice((0, 0.7, 1, 1.5)), "top_p": chance.choice((1, 1, 0.9)),
        }  # fmt: skip
        if chance.random() < 0.3:
            body |= {"logprobs": 2, "echo": True}
        if chance.random() < 0.3:
            body |= {"stop": [" ", "e"]}
        if chance.random() < 0.2:
            body |= {"n": 2, "frequency_penalty": 0.5}
        made.append(body)
    return made


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> list[Any]:
    """Texts, ends and tokens of an answer that comes whole."""
    answer = await client.post("/v1/completions", json=body)
    answer.raise_for_status()
    choices = answer.json()["choices"]
    return [(one["text"], one["finish_reason"], (one["logprobs"] or {}).get("tokens")) for one in choices]


async def listen(client: httpx.AsyncClient, body: dict[str, Any], first: list[float], leave: bool) -> list[Any]:
    """The same of one that comes as a stream; `leave`: after its first piece."""
    begun, texts = time.monotonic(), [["", None, None] for _ in range(body.get("n", 1))]
    async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            if not any(text for text, _, _ in texts):
                first.append(time.monotonic() - begun)
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            if leave:
                raise asyncio.CancelledError
            for one in event["choices"]:
                text, finish, tokens = texts[one["index"]]
                more = (one["logprobs"] or {}).get("tokens")
                tokens = tokens if more is None else (tokens or []) + more
                texts[one["index"]] = [text + one["text"], one["finish_reason"] or finish, tokens]
    return [tuple(text) for text in texts]


async def client_of(url: str, alone: list[tuple[dict[str, Any], list[Any]]], number: int, counts: Counts) -> None:
    """One client, until the time is over."""
    chance, end = random.Random(number), time.monotonic() + FLAGS.seconds
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        while time.monotonic() < end:
            body, expected = chance.choice(alone)
            stream, leaves = chance.random() < 0.5, chance.random() < FLAGS.hang_up
            begun = time.monotonic()
            try:
                if stream:
                    got = await listen(client, body, counts.first, leaves)
                else:
                    got = await asyncio.wait_for(ask(client, body), chance.uniform(0, 1) if leaves else 120)
            except (asyncio.CancelledError, TimeoutError):
                if leaves:
                    counts.hung_up += 1
                else:
                    counts.lost += 1
                    counts.problems.append(f"no answer within 120 s: {body}")
                continue
            except httpx.HTTPStatusError as error:
                if error.response.status_code == 429:
                    counts.refused += 1
                    await asyncio.sleep(chance.uniform(0.1, float(error.response.headers["Retry-After"])))
                else:
                    counts.lost += 1
                    counts.problems.append(f"{error.response.status_code}: {body}")
                continue
            except (httpx.HTTPError, RuntimeError) as error:
                counts.lost += 1
                counts.problems.append(f"{error!r}: {body}")
                continue
            counts.answered += 1
            counts.seconds.append(time.monotonic() - begun)
            if got != expected:
                counts.wrong += 1
                counts.problems.append(f"{body}: {got} and not {expected}")


def memory_of(process: int) -> float:
    """Megabytes that a process has in memory (Linux)."""
    status = pathlib.Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1e3


async def watch(process: int, megabytes: list[float]) -> None:
    """The server's memory, each second."""
    while True:
        megabytes.append(memory_of(process))
        await asyncio.sleep(1)


async def metrics(url: str) -> dict[str, float]:
    """The server's own counts."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        lines = (await client.get("/metrics")).text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


async def measure(url: str, process: int) -> dict[str, Any]:
    """Alone, then all at once; what was counted, in JSON's terms."""
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        alone = [(body, await ask(client, body)) for body in requests(FLAGS.requests, FLAGS.tokens)]
    counts, megabytes, before = Counts(), [], await metrics(url)
    watching = asyncio.create_task(watch(process, megabytes))
    begun = time.monotonic()
    await asyncio.gather(*(client_of(url, alone, number, counts) for number in range(FLAGS.clients)))
    seconds = time.monotonic() - begun
    watching.cancel()
    after = await metrics(url)
    for _ in range(50):  # Whoever went away last is noticed soon.
        if not after["seq2see_active"] + after["seq2see_queued"]:
            break
        await asyncio.sleep(0.1)
        after = await metrics(url)
    counts.tokens = int(after["seq2see_generated_total"] - before["seq2see_generated_total"])
    quarter = max(1, len(megabytes) // 4)
    early, late = (sum(part) / len(part) for part in (megabytes[:quarter], megabytes[-quarter:]))
    return {
        **{name: getattr(counts, name) for name in ("answered", "hung_up", "refused", "wrong", "lost", "tokens")},
        "tokens_per_second": counts.tokens / seconds,
        "seconds": quantiles(counts.seconds),
        "seconds_to_first_piece": quantiles(counts.first),
        "megabytes": {"first_quarter": early, "last_quarter": late, "most": max(megabytes)},
        "still_taken": after["seq2see_active"] + after["seq2see_queued"],
        "problems": counts.problems[:10],
        "ok": not (counts.wrong or counts.lost or after["seq2see_active"] + after["seq2see_queued"])
        and late < KEPT * early,
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """The middle one, one that nine of ten stay under, and the largest."""
    ordered = sorted(values) or [0.0]
    return {name: ordered[int(share * (len(ordered) - 1))] for name, share in (("50%", 0.5), ("90%", 0.9), ("most", 1))}


def show(result: dict[str, Any]) -> None:
    """A table."""
    for name, value in result.items():
        if isinstance(value, dict):
            value = "  ".join(f"{part} {number:.2f}" for part, number in value.items())
        elif isinstance(value, float):
            value = f"{value:.1f}"
        print(f"{name.replace('_', ' '):24} {value}")


def main(_: list[str]) -> int:
    """Start a server, load it, stop it, print."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # A line for each request otherwise.
    command = [
        sys.executable, "-m", "launch.serve", f"--checkpoint={FLAGS.checkpoint}", "--port=0", f"--slots={FLAGS.slots}",
        f"--queue={FLAGS.queue}", f"--length={FLAGS.length}", "--seconds=120",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        line = server.stderr.readline()
        try:
            if not (found := re.match(r"(http://\S+) serves", line)):
                raise app.UsageError(line + server.stderr.read())
            result = asyncio.run(measure(found[1], server.pid))
        finally:
            server.terminate()
        result["exit_status"] = server.wait()
    if FLAGS.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0 if result["ok"] and result["exit_status"] == 0 else 1


if __name__ == "__main__":
    app.run(main)
