"""What the playground's page is told is what the network computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from tiny import random_params, tiny

from configs import schema
from configs.convert import override
from configs.schema import ConfigError
from launch.playground import models, reading
from launch.playground.models import Models, vocabulary
from launch.playground.reading import Reader, Text, thumbnails
from launch.playground.routes import routes
from model import Source, build, packed
from model.lens.places import without_heads
from model.lens.record import record
from train.checkpoint import CheckpointError
from train.data.sections import Corpus
from train.data.tokenizer import make_tokenizer

BYTES = make_tokenizer(schema.Tokenizer(source="bytes"), Corpus([], [], "", ""))
END = BYTES.end_of_text
IDS = (END, *b"def f(x)")


def reader_of(name: str = "", **settings: Any) -> Reader:
    """A random network over bytes, in the form in which it is served; its name is its seed."""
    config = override(tiny(logit_scale=0.3, **settings), {"tokenizer.vocab_size": 257})
    module = build(config)
    return Reader(config, packed.pack(module, random_params(module, seed=len(name))), BYTES)


@pytest.fixture(scope="module")
def reader() -> Reader:
    return reader_of()


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=routes(Models(["a", "bb"], reader_of))))


def logprobs(reader: Reader, ids: tuple[int, ...]) -> np.ndarray:
    logits_BTV = jax.jit(build(reader.config).apply)({"params": reader.params}, jnp.array([ids]))
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits_BTV[0], jnp.float32)))


def test_a_reading_has_the_logits_and_the_likelihoods_of_a_forward_pass(reader):
    found, logprobs_TV = reader.read(Text(IDS)), logprobs(reader, IDS)
    np.testing.assert_allclose(jax.nn.log_softmax(found.logits_V), logprobs_TV[-1], atol=1e-4)
    np.testing.assert_allclose(found.logprobs_T[1:], logprobs_TV[np.arange(len(IDS) - 1), IDS[1:]], atol=1e-4)
    entropies_T = -(np.exp(logprobs_TV) * logprobs_TV).sum(-1)
    np.testing.assert_allclose(found.entropies_T[1:], entropies_T[:-1], atol=1e-4)
    assert found.logprobs_T[0] == found.entropies_T[0] == 0


@pytest.mark.parametrize(
    ("settings", "source"),
    [
        ({"layers": "unroll", "position": "learned", "attention": "mha", "num_kv_heads": 4}, None),
        ({"window": 3, "window_pattern": "LG"}, None),
        ({"network": "encoder_decoder"}, (*b"ab c", END)),
    ],
    ids=str,
)
def test_one_more_token_is_read_alone_as_it_is_read_with_all(settings, source):
    off = frozenset({("self", 0, 1)})
    stepwise, whole = reader_of(**settings), reader_of(**settings)
    for length in range(5, len(IDS) + 1):
        found = stepwise.read(Text(IDS[:length], source, off))
    expected = whole.read(Text(IDS, source, off))
    np.testing.assert_allclose(found.logits_V, expected.logits_V, atol=1e-4)
    np.testing.assert_allclose(found.logprobs_T, expected.logprobs_T, atol=1e-4)
    np.testing.assert_allclose(found.entropies_T, expected.entropies_T, atol=1e-4)
    for kind, weights_LNTS in expected.weights.items():
        np.testing.assert_allclose(found.weights[kind], weights_LNTS, atol=1e-5)


def test_a_text_goes_on_where_the_cache_is_full(monkeypatch):
    monkeypatch.setattr(reading, "SHORTEST", 8)
    stepwise, whole = reader_of(), reader_of()
    ids = (*IDS, *IDS)[:11]
    for length in range(7, len(ids) + 1):
        found = stepwise.read(Text(ids[:length]))
    np.testing.assert_allclose(found.logits_V, whole.read(Text(ids)).logits_V, atol=1e-4)


def test_its_weights_are_those_that_the_lens_records(reader):
    weights_LNTS = reader.read(Text(IDS)).weights["self"]
    expected = record(build(reader.config), reader.params, jnp.array([IDS]))["layers/attention/weights"][:, 0]
    np.testing.assert_allclose(weights_LNTS, expected, atol=1e-6)


def test_a_head_that_is_knocked_out_changes_what_comes_next(reader):
    off = frozenset({("self", 1, 2)})
    changed = reader.read(Text(IDS, off=off)).logits_V
    edits = {"layers/attention/heads": without_heads(2, 4, [(1, 2)])}
    expected = record(build(reader.config), reader.params, jnp.array([IDS]), edits=edits)["logits"][0, -1]
    np.testing.assert_allclose(changed, expected, atol=1e-4)
    assert np.abs(changed - reader.read(Text(IDS)).logits_V).max() > 0.01


def test_a_translator_shows_three_kinds_of_attention_and_its_heads_can_be_knocked_out():
    translator = reader_of(network="encoder_decoder")
    source, target = (*b"ab c", END), (END, *b"xy")
    plain = translator.read(Text(target, source))
    expected = record(
        build(translator.config), translator.params, jnp.array([target]), tuple(reading.WEIGHTS.values()),
        Source.of(jnp.array([source])),
    )  # fmt: skip
    for kind, place in reading.WEIGHTS.items():
        np.testing.assert_allclose(plain.weights[kind], expected[place][:, 0], atol=1e-5)
        changed = translator.read(Text(target, source, frozenset({(kind, 0, 0), (kind, 1, 0)})))
        assert np.abs(changed.logits_V - plain.logits_V).max() > 1e-3
    np.testing.assert_allclose(plain.logits_V, expected["logits"][0, -1], atol=1e-4)


@pytest.mark.parametrize(("kind", "kinds"), [("lstm", set()), ("lstm_encoder_decoder", {"cross"})])
def test_recurrent_networks_can_be_read_too(kind, kinds):
    recurrent = reader_of(network=kind)
    found = recurrent.read(Text(IDS, (*b"ab", END) if "encoder" in kind else None))
    assert set(found.weights) == kinds
    with pytest.raises(ConfigError, match=r"has no heads to silence|this network has no attention"):
        recurrent.read(Text(IDS, (END,) if kinds else None, frozenset({("cross", 0, 0)})))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (Text(()), "ids has 0 tokens"),
        (Text((1,) * 600), "texts of 1 to 512"),
        (Text((257,)), "ids has the token 257: there are 0 to 256"),
        (Text((1,), (1,)), "source is for networks that translate"),
        (Text((1,), off=frozenset({("self", 2, 0)})), "layer 2, head 0 of 'self': this network has self"),
        (Text((1,), off=frozenset({("cross", 0, 0)})), "'cross': this network has self"),
    ],
)
def test_what_cannot_be_read_is_refused(reader, text, message):
    with pytest.raises(ConfigError, match=message):
        reader.read(text)


def test_an_encoder_has_no_next_token():
    with pytest.raises(ConfigError, match=r"continues nothing: use launch\.sample"):
        reader_of(network="encoder")


def test_no_more_readings_are_kept_than_there_is_room_for(reader, monkeypatch):
    monkeypatch.setattr(reading, "KEPT_BYTES", 40_000)
    for last in range(12):
        reader.read(Text((*IDS, last)))
    assert 2 <= len(reader._kept) <= 9
    first = reader.read(Text((*IDS, 11)))
    assert reader.read(Text((*IDS, 11))) is first


def test_small_pictures_keep_the_brightest_of_what_they_cover():
    weights_LNTS = np.zeros((1, 1, 70, 70), np.float32)
    weights_LNTS[0, 0, 69, 0], weights_LNTS[0, 0, 0, 0], weights_LNTS[0, 0, 40, 35] = 1.0, 0.25, -0.01
    (((picture_PQ,),)) = thumbnails(weights_LNTS)
    assert picture_PQ.shape == (24, 24)
    assert picture_PQ[23, 0] == 255
    assert picture_PQ[0, 0] == 128
    assert picture_PQ[13, 11] == 26
    assert np.count_nonzero(picture_PQ) == 3
    assert thumbnails(np.ones((2, 3, 5, 7), np.float32)).shape == (2, 3, 5, 7)


def test_the_vocabulary_travels_whole():
    data = vocabulary(BYTES, 260)  # A network may know more numbers than there are tokens.
    lengths = np.frombuffer(data, "<u4", 260)
    assert lengths[256] == len("<|endoftext|>")
    special = data[4 * 260 : 5 * 260]
    assert [id for id in range(260) if special[id]] == [256, 257, 258, 259]
    content = data[5 * 260 :]
    assert content == bytes(range(256)) + b"<|endoftext|>"


def numbers(response: Any) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.frombuffer(response.content, "<f4")


def test_numbers_arrive_in_binary_and_by_network(client):
    ids = client.post("/playground/api/encode", json={"model": "a", "text": "def f(x)"}).json()["ids"]
    assert tuple(ids) == IDS
    for name in ("a", "bb"):
        found = reader_of(name).read(Text(IDS))
        received = numbers(client.post("/playground/api/read", json={"model": name, "ids": ids}))
        expected = np.concatenate([found.logits_V, found.logprobs_T, found.entropies_T])
        np.testing.assert_allclose(received, expected, atol=1e-5)
        asked = {"model": name, "ids": ids, "layer": 1, "head": 3, "off": [["self", 0, 1]]}
        head = client.post("/playground/api/head", json=asked).content
        assert np.frombuffer(head, "<u4", 2).tolist() == [9, 9]
        assert np.frombuffer(head[8:], "<f4").reshape(9, 9).sum(-1) == pytest.approx(1)
        grid = client.post("/playground/api/grid", json={"model": name, "ids": ids}).content
        assert np.frombuffer(grid, "<u4", 4).tolist() == [2, 4, 9, 9]
        assert len(grid) == 16 + 2 * 4 * 9 * 9


def test_the_page_may_ask_nobody_else(client):
    for path in ("/", "/playground/main.js", "/playground/style.css", "/playground/api/models"):
        response = client.get(path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "http" not in policy
    assert client.get("/playground/../routes.py").status_code == 404


@pytest.mark.parametrize(
    ("name", "body", "status", "param"),
    [
        ("read", b"{", 400, None),
        ("read", b'{"model": "a", "ids": ["x"]}', 400, "ids.0"),
        ("read", b'{"model": "a", "ids": [1], "oof": []}', 400, "oof"),
        ("read", b'{"model": "a", "ids": [1], "off": [["all", 0, 0]]}', 400, "off.0.0"),
        ("read", b'{"model": "/etc", "ids": [1]}', 400, None),
        ("head", b'{"model": "a", "ids": [1], "layer": 9, "head": 0}', 400, None),
        ("encode", b'{"model": "a", "text": "' + b"x" * 2**20 + b'"}', 413, None),
    ],
)
def test_malformed_questions_are_answered_with_the_field(client, name, body, status, param):
    response = client.post(f"/playground/api/{name}", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    assert response.json()["error"]["message"]
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("checkpoint", "first"),
    [
        ("runs/x", ("runs/x", "x, newest step")),
        ("runs/x/", ("runs/x/", "x, newest step")),
        ("runs/x@10", ("runs/x@20", "x, step 20")),
        ("./runs/x@10", ("./runs/x@10", "x, step 10")),
    ],
)
def test_all_steps_of_a_run_can_be_chosen(checkpoint, first, monkeypatch):
    step = 10 if "@" in checkpoint else 20
    monkeypatch.setattr(models, "find", lambda spec: (Path("runs/x"), step))
    monkeypatch.setattr(models, "finished_steps", lambda folder: [10, 20])
    shown = [(choice.checkpoint, choice.title) for choice in models.choices(checkpoint)]
    assert shown[0] == first
    assert checkpoint in dict(shown)
    assert {("runs/x@20", "x, step 20"), ("runs/x@10", "x, step 10")} <= set(shown)


def test_only_what_was_named_is_restored():
    asked: list[str] = []

    def restore(name: str) -> Reader:
        asked.append(name)
        return reader_of(name)

    shown = Models(["a", "bb", "a"], restore)
    assert asked == ["a", "bb"]
    assert shown.reader("a") is shown.reader("a")
    with pytest.raises(ConfigError, match="'ccc' is not shown here; there are a, bb"):
        shown.reader("ccc")

    def missing(name: str) -> Reader:
        raise CheckpointError(name)

    with pytest.raises(CheckpointError):
        Models(["a"], missing)
