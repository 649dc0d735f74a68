"""A text that a grammar allows, and no other: whatever the network would rather write."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tiny import VOCABULARY, random_params, tiny

from configs.schema import ConfigError
from model import build
from model.generate import Engine, Grammar, Grammars, Request, Sampling, generate
from model.generate.grammar import masks, only_allowed

pytest.importorskip("llguidance")

END, SPECIAL = 31, 30
# Single characters, and words that cut a text in other places; two tokens without text.
PIECES = [*(bytes([b]) for b in b'0123456789abcd{}":, n'), b"ab", b"12", b'{"', b'":', b"bcd", b"3a", b"00", b"", b""]
PIECES = [*PIECES, *[b""] * (VOCABULARY - len(PIECES))]
PHONE = Grammar(regex="[0-9]{3}(ab|cd){1,3}")
SCHEMA = {
    "type": "object", "properties": {"a": {"enum": ["ab", "cd"]}, "b": {"type": "integer"}},
    "required": ["a", "b"], "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def grammars():
    return Grammars(PIECES, [END], VOCABULARY)


@pytest.fixture(scope="module")
def network():
    module = build(tiny())
    return module, random_params(module)


def text_of(tokens):
    assert tokens[-1] == END
    assert END not in tokens[:-1]
    return b"".join(PIECES[token] for token in tokens[:-1]).decode()


def allowed(matcher):
    return {token for token in range(VOCABULARY) if matcher.allowed()[0] >> token & 1}


def test_a_mask_allows_every_token_that_spells_on_and_the_end_where_the_text_may_end(grammars):
    matcher = grammars.matcher(Grammar(regex="(ab|ac)(ab)*12?"))
    token = {piece: number for number, piece in enumerate(PIECES) if piece}
    assert allowed(matcher) == {token[b"a"], token[b"ab"]}
    matcher.take(token[b"a"])
    assert allowed(matcher) == {token[b"b"], token[b"c"]}
    matcher.take(token[b"b"])
    assert allowed(matcher) == {token[b"a"], token[b"ab"], token[b"1"], token[b"12"]}
    matcher.take(token[b"1"])
    assert allowed(matcher) == {token[b"2"], END}
    matcher.take(token[b"2"])
    assert allowed(matcher) == {END}
    matcher.take(END)
    assert allowed(matcher) == {END}


def test_masks_hide_what_is_not_allowed(grammars):
    matcher = grammars.matcher(Grammar(regex="a"))
    logits_BV = np.arange(2 * VOCABULARY, dtype=np.float32).reshape(2, -1)
    found_BV = np.asarray(only_allowed(logits_BV, masks([None, matcher], VOCABULARY)))
    np.testing.assert_array_equal(found_BV[0], logits_BV[0])
    assert np.flatnonzero(np.isfinite(found_BV[1])).tolist() == [10]


@pytest.mark.parametrize("temperature", [0.0, 8.0])
def test_every_text_is_one_of_the_grammar(network, grammars, temperature):
    rows = 4
    matchers = [grammars.matcher(PHONE) for _ in range(rows)]
    chunks = generate(
        *network, [[1, 2, 3]] * rows, Sampling(temperature), max_tokens=24, seeds=range(rows), ends=[END],
        matchers=matchers,
    )  # fmt: skip
    tokens_BC = np.concatenate([chunk.tokens_BC for chunk in chunks], axis=1).tolist()
    texts = [text_of(tokens[: tokens.index(END) + 1]) for tokens in tokens_BC]
    assert all(re.fullmatch(PHONE.regex, text) for text in texts), texts
    assert len(set(texts)) == (1 if temperature == 0 else rows)


def test_requests_with_and_without_a_grammar_are_written_together(network, grammars):
    engine = Engine(*network, slots=3, length=128, chunk=4, grammars=grammars)
    schema = Grammar(json_schema=json.dumps(SCHEMA))
    free = Request((1, 2), Sampling(temperature=4), 30, seed=3)
    requests = [
        Request((1,), Sampling(temperature=9), 60, seed=1, ends=(END,), grammar=schema),
        free,
        Request((1, 2, 3), Sampling(temperature=9), 60, seed=2, ends=(END,), grammar=PHONE),
        Request((4,), Sampling(temperature=2), 60, seed=5, ends=(END,), grammar=schema),
    ]
    found = {engine.submit(request): [] for request in requests}
    while engine.busy:
        for event in engine.step():
            found[event.ticket].extend(event.tokens)
    texts = [[token.id for token in tokens] for tokens in found.values()]
    for text in (texts[0], texts[3]):
        if len(text) < 60:  # A number may be long.
            value = json.loads(text_of(text))
            assert list(value) == ["a", "b"]
            assert value["a"] in ("ab", "cd")
    assert re.fullmatch(PHONE.regex, text_of(texts[2]))
    assert found[3][-1].finish == "end"
    alone = Engine(*network, slots=3, length=128, chunk=4)
    alone.submit(free)
    tokens = []
    while alone.busy:
        tokens += [token.id for event in alone.step() for token in event.tokens]
    assert texts[1] == tokens


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ({"regex": "(a"}, r"--regex=\(a: .*"),
        ({"json_schema": "{"}, r"--json_schema=\{: .*line 1"),
        ({"json_schema": '{"type": "nope"}'}, "nope"),
        ({}, "one of the two"),
        ({"regex": "a", "json_schema": "{}"}, "one of the two"),
    ],
)
def test_a_wrong_grammar_is_refused(grammars, grammar, message):
    with pytest.raises(ConfigError, match=message):
        grammars.matcher(Grammar(**grammar))


def test_a_request_with_a_grammar_needs_an_end_and_an_engine_that_knows_the_tokens(network, grammars):
    engine = Engine(*network, slots=1, length=64, grammars=grammars)
    for request, message in (
        (Request((1,), grammar=PHONE), "has to end"),
        (Request((1,), Sampling(forced=(1,)), ends=(END,), grammar=PHONE), "--forced contradicts"),
    ):
        with pytest.raises(ConfigError, match=message):
            engine.submit(request)
    with pytest.raises(ConfigError, match="without the tokenizer"):
        Engine(*network, slots=1, length=64).submit(Request((1,), ends=(END,), grammar=PHONE))
