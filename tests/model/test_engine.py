"""The engine writes for each request what it would write for it alone, whatever else is going on."""

from __future__ import annotations

import dataclasses
import logging
import math

import jax
import numpy as np
import pytest
from tiny import VOCABULARY, random_params, random_tokens, tiny

from configs.convert import override
from configs.schema import ConfigError
from model import build
from model.generate import Engine, Request, Sampling, generate
from model.generate.cache import PIECE
from model.generate.decode import decode_chunk
from model.packed import pack
from model.sharding import make_mesh, param_shardings

LONG = tuple(random_tokens(2 * PIECE + 9, seed=1).tolist())
SETTINGS = [
    Sampling(temperature=4), Sampling(temperature=0), Sampling(temperature=4, top_k=9),
    Sampling(temperature=5, top_p=0.8),
    Sampling(temperature=3, min_p=0.01, bias=((3, 2.0),)), Sampling(temperature=0, frequency_penalty=3.0),
    Sampling(temperature=4, banned=(1, 2)), Sampling(temperature=3, typical_p=0.7, repetition_penalty=1.2),
]  # fmt: skip
REQUESTS = [
    Request(LONG[: 3 + 25 * number], sampling, max_tokens=20 + number, seed=number, top=number % 3)
    for number, sampling in enumerate(SETTINGS)
]  # fmt: skip


def finish(engine, tickets):
    """Step until all is done; the tokens of each ticket."""
    found = {ticket: [] for ticket in tickets}
    for _ in range(200):
        if not engine.busy:
            return found
        for event in engine.step():
            found[event.ticket].extend(event.tokens)
    raise AssertionError("the engine does not end")


def three(network, **settings):
    """An engine of three slots: of one shape in all tests, so that it is compiled once."""
    return Engine(*network, slots=3, length=256, top=3, chunk=4, **settings)


def run(engine, requests):
    tickets = [engine.submit(request) for request in requests]
    found = finish(engine, tickets)
    return [found[ticket] for ticket in tickets]


@pytest.fixture(scope="module")
def network():
    module = build(tiny(window=6, window_pattern="LG"))
    return module, random_params(module)


@pytest.fixture(scope="module")
def together(network):
    return run(Engine(*network, slots=8, length=256, top=3, chunk=4), REQUESTS)


def test_a_request_depends_on_itself_only_alone_in_a_batch_and_in_another_order(network, together):
    assert len({tuple(token.id for token in text) for text in together}) == 8
    backwards = run(Engine(*network, slots=8, length=256, top=3, chunk=4), REQUESTS[::-1])[::-1]
    assert backwards == together
    engine = Engine(*network, slots=8, length=256, top=3, chunk=4)
    for request, expected in zip(REQUESTS, together, strict=True):
        assert run(engine, [request]) == [expected]


def test_the_engine_writes_what_generate_writes(network, together):
    for number in (0, 3, 7):  # Few, since `generate` compiles for each length of a prompt.
        request, found = REQUESTS[number], together[number]
        chunks = generate(
            *network, [request.tokens], request.sampling, max_tokens=256 - len(request.tokens), seeds=[request.seed],
            ends=[-1],
        )  # fmt: skip
        expected = next(chunks).tokens_BC[0]
        assert [token.id for token in found[: len(expected)]] == expected.tolist()
        assert [token.finish for token in found] == [""] * (len(found) - 1) + ["length"]
        assert all(len(token.top) == request.top for token in found)


def test_requests_wait_for_a_slot_join_while_others_write_and_nothing_is_compiled_again(network, together, caplog):
    engine = three(network)
    for request in REQUESTS[:2]:
        run(engine, [request])
    run(engine, [Request(LONG, max_tokens=1)])
    ticket = engine.submit(REQUESTS[4])
    engine.step()
    engine.cancel(ticket)
    engine.step()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        tickets, found = [engine.submit(request) for request in REQUESTS[:5]], {}
        assert engine.stats.queued == 5
        events = engine.step()
        assert (engine.stats.active, engine.stats.queued) == (3, 2)
        tickets += [engine.submit(request) for request in REQUESTS[5:]]
        found = finish(engine, tickets)
        for event in events:
            found[event.ticket][:0] = event.tokens
    assert not [record.message for record in caplog.records if "ompil" in record.message]
    for ticket, expected in zip(tickets, together, strict=True):
        assert [token.id for token in found[ticket]] == [token.id for token in expected]
    assert engine.stats.generated >= sum(map(len, together))
    assert (engine.stats.active, engine.stats.cache_tokens) == (0, 0)


def test_the_beginning_that_prompts_share_is_read_once_and_changes_nothing(network):
    engine, other = (three(network, prefix_tokens=tokens) for tokens in (256, 0))
    requests = [Request((*LONG, last), Sampling(temperature=4), seed=last, max_tokens=6, top=2) for last in range(4)]
    assert run(engine, requests) == run(other, requests)
    assert engine.stats.prefix_hits == 3 * 2 * PIECE
    assert other.stats.prefix_hits == 0
    run(engine, [Request(tuple(range(20)) * 10, max_tokens=1), Request(tuple(range(21)) * 10, max_tokens=1)])
    run(engine, requests[:1])
    assert engine.stats.prefix_hits == 3 * 2 * PIECE, "what was used longest ago must have made room"


@pytest.mark.parametrize("kind", ["lstm", "linear", "delta", "latent"])
def test_states_and_latents_go_through_the_same_engine_prefixes_too(kind):
    module = build(tiny(network="lstm") if kind == "lstm" else tiny(attention=kind))
    params = random_params(module)
    engine = Engine(module, params, slots=3, length=256, chunk=4)
    requests = [Request(tokens, Sampling(temperature=4), 9, seed=5) for tokens in (LONG[:70], (3,), LONG, LONG[:65])]
    found = run(engine, requests)
    assert engine.stats.prefix_hits == 2 * PIECE
    full = jax.jit(lambda tokens_BT: jax.nn.log_softmax(module.apply({"params": params}, tokens_BT)))
    for request, tokens in zip(requests, found, strict=True):
        text, length = [*request.tokens, *(token.id for token in tokens)], len(request.tokens)
        logprobs_TV = np.asarray(full(np.array([text + [0] * (160 - len(text))], np.int32)))[0, length - 1 :]
        expected = [logprobs_TV[place, token.id] for place, token in enumerate(tokens)]
        np.testing.assert_allclose([token.logprob for token in tokens], expected, atol=1e-3)
        assert len({token.id for token in tokens}) > 2


@pytest.mark.parametrize("network", ["encoder_decoder", "lstm_encoder_decoder"])
def test_translators_go_through_the_same_engine(network):
    module = build(tiny(network=network))
    params = random_params(module)
    engine = Engine(module, params, slots=2, length=64, source_length=64, chunk=4)
    sources = [LONG[:40], LONG[50:53], LONG[7:64], LONG[:33]]
    requests = [Request((2,), Sampling(temperature=4), 9, seed=5, source=source) for source in sources]
    found = run(engine, requests)
    chunks = generate(
        module, params, [(2,)] * 4, Sampling(temperature=4), max_tokens=9, seeds=[5] * 4, ends=[-1], sources=sources
    )
    assert [[token.id for token in tokens] for tokens in found] == next(chunks).tokens_BC.tolist()


def test_a_text_ends_with_its_ends_with_its_number_and_where_there_is_no_more_room(network, together):
    end = together[0][5].id
    first = [token.id for token in together[0]].index(end)
    engine = three(network)
    request = Request(REQUESTS[0].tokens, REQUESTS[0].sampling, 100, ends=(99, end))
    (found,) = run(engine, [request])
    assert [token.id for token in found] == [token.id for token in together[0][: first + 1]]
    assert found[-1].finish == "end"
    (found,) = run(engine, [Request((LONG * 2)[:252], max_tokens=100)])
    assert [token.finish for token in found] == ["", "", "", "length"]


def test_prompts_are_scored_as_the_full_pass_scores_them(network):
    module, params = network
    engine = three(network)
    engine.submit(Request(LONG, max_tokens=0, prompt_logprobs=True, top=3))
    ticket = engine.submit(Request(LONG[:70], max_tokens=3, prompt_logprobs=True))
    events = []
    while engine.busy:
        events += engine.step()
    assert [(len(event.tokens), len(event.prompt)) for event in events] == [(0, len(LONG)), (3, 70)]
    assert events[1].ticket == ticket
    tokens = events[0].prompt
    logits_BTV = jax.jit(lambda tokens_BT: module.apply({"params": params}, tokens_BT))(np.array([LONG], np.int32))
    expected_TV = np.asarray(jax.nn.log_softmax(logits_BTV))[0, :-1]
    assert math.isnan(tokens[0].logprob)
    assert tuple(token.id for token in tokens) == LONG
    np.testing.assert_allclose(
        [token.logprob for token in tokens[1:]], expected_TV[np.arange(len(LONG) - 1), LONG[1:]], atol=3e-4
    )
    likeliest = -np.sort(-expected_TV, axis=1)[:, :3]
    np.testing.assert_allclose([[p for _, p in token.top] for token in tokens[1:]], likeliest, atol=3e-4)


def test_a_cancelled_request_leaves_its_slot_to_the_next(network, together):
    engine = three(network)
    first, *others, second, third = (engine.submit(REQUESTS[number]) for number in (7, 5, 6, 1, 2))
    engine.step()
    assert engine.stats.active == 3
    engine.cancel(first)
    engine.cancel(second)
    engine.cancel(12345)
    found = finish(engine, [first, *others, second, third])
    assert found[first] == found[second] == []
    assert [token.id for token in found[third]] == [token.id for token in together[2]]


def test_eight_devices_write_what_one_writes(together):
    config = tiny(window=6, window_pattern="LG")
    mesh = make_mesh(dataclasses.replace(config.mesh, data=2, fsdp=2, tensor=2), jax.devices())
    module = build(config)
    params = jax.device_put(random_params(module), param_shardings(module, mesh))
    with jax.set_mesh(mesh):
        engine = Engine(module, pack(module, params), slots=8, length=256, top=3, chunk=4)
    # Like a server's thread, these know of no mesh.
    found = run(engine, REQUESTS[:4])
    cache = engine._state.cache["layers"]["attention"]["key"]
    assert cache.sharding.shard_shape(cache.shape)[1:4] == (2, 256, 1)  # Rows by four, heads by two.
    compiled = decode_chunk._cache_size()
    run(engine, REQUESTS[4:5])
    assert decode_chunk._cache_size() == compiled
    for text, expected in zip(found, together, strict=False):
        assert [token.id for token in text] == [token.id for token in expected]
        np.testing.assert_allclose([t.logprob for t in text], [t.logprob for t in expected], atol=1e-4)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(()), "at least one token"),
        (Request((1, VOCABULARY)), rf"tokens: .*{VOCABULARY}.*0 to {VOCABULARY - 1}"),
        (Request((1,), max_tokens=0), r"max_tokens=0: it must be at least 1"),
        (Request((1,), top=4), r"top=4: .* from 0 to 3"),
        (Request((1,) * 64), r"64 tokens.*room for 63"),
        (Request((1,), source=(1,)), "takes a source if it translates"),
        (Request((1,), ends=tuple(range(17))), r"17 tokens; at most 16"),
        (Request((1,), Sampling(banned=(40,))), r"--banned=40: .*0 to 31"),
        (Request((1,) * 60, Sampling(forced=(1,) * 9)), r"--forced: .*no room for 9"),
    ],
)
def test_what_cannot_be_run_is_refused_when_it_is_submitted(network, request_, message):
    engine = Engine(*network, slots=1, length=64, top=3)
    with pytest.raises(ConfigError, match=message):
        engine.submit(request_)
    assert not engine.busy


def test_an_engine_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"--slots=0"):
        Engine(build(tiny()), None, slots=0)
    with pytest.raises(ConfigError, match=r"encoder fills in"):
        Engine(build(override(tiny(network="encoder"), {"data.masked": 0.15})), None)
