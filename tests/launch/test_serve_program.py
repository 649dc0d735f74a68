"""launch.serve as a user starts and stops it: real processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from compiled_fast import COMPILED_FAST

from model import build
from tests.serving import sized, words_tokenizer
from tests.tiny import random_params, tiny
from train.checkpoint import Restored
from train.run import save_run

pytestmark = pytest.mark.end_to_end
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("runs") / "tiny", words_tokenizer(chat=None)
    config = sized(tiny(), tokenizer.size)
    save_run(folder, Restored(config, random_params(build(config)), tokenizer, 0))
    return folder


def start(*flags: str, **environment: str) -> subprocess.Popen[str]:
    quick = {**os.environ, "XLA_FLAGS": COMPILED_FAST, **environment}
    command = [sys.executable, "-m", "launch.serve", *flags]
    return subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, env=quick)


@contextlib.contextmanager
def serving(*flags: str, **environment: str):
    """A server in a process: (process, address, first line of its log)."""
    process = start("--port=0", *flags, **environment)
    try:
        assert process.stderr
        line = process.stderr.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+) serves ", line)
        assert found, line + process.stderr.read()
        yield process, found[1], line
    finally:
        process.kill()
        process.wait()


def test_it_says_where_and_what_it_is_and_stops_without_losing_an_answer(checkpoint):
    flags = (f"--checkpoint={checkpoint}", "--length=512", "--slots=2", "--grace=60")
    with serving(*flags, SEQ2SEE_API_KEY="s3cret") as (process, url, line):
        assert f"serves {checkpoint}: 2 texts at once" in line
        assert "512" in line
        assert "s3cret" not in line
        body = {"prompt": " the", "max_tokens": 400, "logit_bias": {"0": -100, "1": -100}, "n": 8, "stream": True}
        told = {"Authorization": "Bearer s3cret"}
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=body, headers=told, timeout=60, trust_env=False
        ) as events:
            lines = events.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert process.wait(60) == 0
        finished = [choice for event in rest for choice in event["choices"] if choice["finish_reason"]]
        assert sorted(choice["index"] for choice in finished) == list(range(8))
        assert "s3cret" not in process.stderr.read()


@pytest.mark.slow
def test_what_is_not_done_in_time_is_broken_off_with_an_error(checkpoint):
    with serving(f"--checkpoint={checkpoint}", "--length=4096", "--grace=0") as (process, url, _):
        body = {"prompt": " the", "max_tokens": 4000, "logit_bias": {"0": -100}, "n": 64}
        answers = []

        def ask():
            with httpx.Client(timeout=60, trust_env=False) as client:
                answers.append(client.post(f"{url}/v1/completions", json=body))

        asking = threading.Thread(target=ask)
        asking.start()
        with httpx.Client(timeout=60, trust_env=False) as client:
            while "seq2see_active 8.0" not in client.get(f"{url}/metrics").text:
                pass
        process.send_signal(signal.SIGTERM)
        asking.join(60)
        assert process.wait(60) == 0
        assert answers[0].status_code == 503
        assert answers[0].json()["error"]["type"] == "server_error"


def test_what_cannot_be_is_refused_in_one_line():
    process = start("--checkpoint=nowhere", "--host=0.0.0.0")
    assert process.stderr
    said = process.stderr.read()
    assert process.wait(60) == 2
    assert said.startswith("launch.serve: --host=0.0.0.0 lets other machines in")
    assert said.count("\n") == 1
