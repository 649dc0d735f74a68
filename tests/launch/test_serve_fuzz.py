"""Whatever is sent, the server does what its own OpenAPI document says, and never fails."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx
import jsonschema_rs
import pytest

from tests.serving import running, tiny_serving

# Not asked: whether all that the document allows is answered with success; prompts may be too long for the limits.
CHECKS = "positive_data_acceptance"


@pytest.fixture(scope="module")
def url():
    with running(tiny_serving()) as url:
        yield url


def test_the_document_is_one(url):
    document = httpx.get(f"{url}/openapi.json", trust_env=False).json()
    assert document["openapi"].startswith("3.1")
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.validator_for({**schema, "components": document["components"]})


@pytest.mark.slow
def test_nothing_that_is_sent_makes_the_server_fail(url, tmp_path):
    program = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    command = [
        program, "run", f"{url}/openapi.json", "--max-examples=25", "--seed=1", "--phases=examples,coverage,fuzzing",
        f"--exclude-checks={CHECKS}", "--request-timeout=20", "--generation-database=none", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
