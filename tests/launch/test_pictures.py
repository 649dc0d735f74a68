"""Each view shows what the network does: compared with plain forward passes, with weights set to zero by hand."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from tiny import random_params, tiny

from configs.convert import override
from configs.schema import ConfigError
from launch.pictures import VIEWS, Asked, _together, repeated, see
from launch.views.attention import HeadsView
from launch.views.tokens import Expected
from model import Source, build
from model.lens.record import record
from tests.launch.test_views_pieces import BYTES, END
from train.checkpoint import Restored

TEXT, OTHER = "a我b cab", "a我b dab"
LONGEST = 1 + len(TEXT.encode())
COMMAND = "uv run -m launch.attend --view=x"
ASKED = {"patch": Asked([TEXT], other=OTHER), "knockout": Asked([TEXT, "ba"])}


@functools.partial(jax.jit, static_argnums=0)
def apply(module: Any, params: Any, tokens_BT: Any) -> Any:
    return module.apply({"params": params}, tokens_BT)


@functools.cache
def network(**settings: Any) -> Restored:
    config = override(tiny(logit_scale=0.3, **settings), {"tokenizer.vocab_size": 257})
    return Restored(config, random_params(build(config)), BYTES, 7)


@functools.cache
def view(name: str, **settings: Any) -> Any:
    return VIEWS[name](network(**settings), ASKED.get(name, Asked([TEXT])), COMMAND)


def log_probabilities(text: str, params: Any = None) -> np.ndarray:
    """Of what comes after each token of a text, [T,V]."""
    return after_each([END, *text.encode()], params)


def after_each(ids: list[int], params: Any = None) -> np.ndarray:
    restored = network()
    tokens_BT = np.array([ids + [0] * (LONGEST - len(ids))], np.int32)  # What comes behind changes nothing before it.
    logits_BTV = apply(build(restored.config), params or restored.params, tokens_BT)
    return np.asarray(special.log_softmax(np.asarray(logits_BTV[0, : len(ids)], np.float64), axis=-1))


def without(layer: int, head: int) -> Any:
    """Parameters with which a head writes nothing."""
    params = network().params
    kernel_LNHD = np.array(params["layers"]["attention"]["output"]["kernel"])
    kernel_LNHD[layer, head] = 0
    attention = params["layers"]["attention"] | {"output": {"kernel": kernel_LNHD}}
    return params | {"layers": params["layers"] | {"attention": attention}}


def test_each_token_is_colored_by_its_probability_and_a_character_by_that_of_all_its_bytes():
    ids = [END, *TEXT.encode()]
    logprobs_TV = log_probabilities(TEXT)
    expected_T = logprobs_TV[range(len(ids) - 1), ids[1:]]
    found = view("tokens")
    assert [token.logprob for token in found.tokens[1:]] == pytest.approx(expected_T.tolist(), abs=1e-4)
    assert [piece.text for piece in found.pieces] == ["<|endoftext|>", *TEXT]
    assert found.pieces[2].logprob == pytest.approx(expected_T[1:4].sum(), abs=1e-4)
    entropy_T = -np.sum(np.exp(logprobs_TV) * logprobs_TV, -1)
    assert [token.entropy for token in found.tokens[1:]] == pytest.approx(entropy_T[:-1].tolist(), abs=1e-4)
    begins = _together("我", [Expected("\\xe6", None, None, ()), found.tokens[3], found.tokens[4]])
    assert (begins.text, begins.logprob) == ("我", None)  # What is read without a prediction stays without one.
    best = int(logprobs_TV[0].argmax())
    assert found.tokens[1].top[0] == (BYTES.token_text(best), pytest.approx(np.exp(logprobs_TV[0, best]), abs=1e-5))


def test_the_last_row_of_the_lens_is_the_prediction():
    p_TV = np.exp(log_probabilities(TEXT))
    found = view("lens")
    assert len(found.top) == 3
    assert list(found.top[-1]) == [BYTES.token_text(int(id)) for id in p_TV.argmax(-1)]
    np.testing.assert_allclose(found.probability_RT[-1], p_TV.max(-1), atol=1e-5)
    following_T = p_TV[range(len(p_TV) - 1), list(TEXT.encode())]
    np.testing.assert_allclose(found.following_RT[-1, :-1], following_T, atol=1e-5)


def test_a_patch_of_the_token_that_differs_gives_the_other_text_and_one_before_it_gives_nothing():
    found = view("patch")
    differs = 1 + len("a我b ".encode())
    assert (found.tokens[differs], found.others[differs]) == ("c", "d")
    np.testing.assert_allclose(found.moved[0], np.eye(len(found.tokens))[differs], atol=1e-4)
    np.testing.assert_allclose(found.moved[:, :differs], 0, atol=1e-4)
    ours, theirs = (log_probabilities(text)[-1] for text in (TEXT, OTHER))
    gained_V = np.exp(theirs) - np.exp(ours)
    first, second = int(gained_V.argmin()), int(gained_V.argmax())
    assert found.answers == (BYTES.token_text(first), BYTES.token_text(second))
    assert found.differences[0] == pytest.approx(ours[second] - ours[first], abs=1e-4)
    assert found.differences[1] == pytest.approx(theirs[second] - theirs[first], abs=1e-4)


@pytest.mark.parametrize("head", [(0, 1), (1, 3)])
def test_beside_the_attention_stands_what_the_prediction_would_be_without_the_head(head):
    check = view("heads").knocked
    p_V, without_V = np.exp(log_probabilities(TEXT)[-1]), np.exp(log_probabilities(TEXT, without(*head))[-1])
    ids = np.argsort(-p_V, kind="stable")[: len(check.candidates)]
    assert list(check.candidates) == [BYTES.token_text(int(id)) for id in ids]
    np.testing.assert_allclose(check.before_K, p_V[ids], atol=1e-5)
    np.testing.assert_allclose(check.after_LNK[head], without_V[ids], atol=1e-5)


def test_a_word_that_is_named_looks_and_in_the_head_in_which_it_looks_hardest():
    seen = view("heads").seen
    ids = [END, *TEXT.encode()]
    at = ids.index(ord("c"))  # The token after three that are one character.
    found = HeadsView(view("heads").about, seen, looking=at - 2)
    shown = json.loads(found.json())["shown"]
    assert shown["token"] == at
    elsewhere_LN = seen.in_pieces().weights_LNTS[:, :, at - 2, 1 : at - 3].max(-1)
    assert (shown["layer"], shown["head"]) == np.unravel_index(elsewhere_LN.argmax(), elsewhere_LN.shape)
    assert f"(token {at - 2})" in found.subject()
    assert f'"value":[{{"query":{at}}}]' in found.html()  # Token by token.


def test_heads_are_ranked_by_what_the_texts_lose_without_them_whatever_their_lengths():
    found = view("knockout")
    for at, text in enumerate(ASKED["knockout"].texts):
        ids = list(text.encode())
        losses = [-log_probabilities(text, p)[range(len(ids)), ids].mean() for p in (None, without(1, 2))]
        assert found.losses_B[at] == pytest.approx(losses[0], abs=1e-4)
        assert found.changes_LNB[1, 2, at] == pytest.approx(losses[1] - losses[0], abs=1e-4)
    low, high = stats.t.interval(0.95, 1, found.changes_LNB[1, 2].mean(), stats.sem(found.changes_LNB[1, 2]))
    assert found.interval[1, 2] == pytest.approx((high - low) / 2, rel=1e-5)


def test_a_head_s_score_is_the_mean_of_the_weights_that_it_is_named_after():
    found = view("model")
    weights_LNTS = found.seen.weights_LNTS
    previous_LN = np.mean([weights_LNTS[..., t, t - 1] for t in range(1, weights_LNTS.shape[-1])], axis=0)
    np.testing.assert_allclose(found.scores["previous"], previous_LN, atol=1e-5)
    ids = list(TEXT.encode())
    losses = [-log_probabilities(TEXT, p)[range(len(ids)), ids].mean() for p in (None, without(0, 3))]
    assert found.changes_LN[0, 3] == pytest.approx(losses[1] - losses[0], abs=1e-4)


@pytest.mark.parametrize("name", [name for name in VIEWS if name not in ("evolution", "alignment")])
def test_every_view_says_its_model_text_and_command_as_picture_page_numbers_and_in_a_notebook(name):
    found = view(name)
    svg = found.svg()
    for words in (f"{found.about.model}", "a我b", COMMAND):
        assert words in svg
    page = found.html()
    assert COMMAND in page
    assert found._repr_html_().startswith("<iframe srcdoc=")
    in_a_notebook = dataclasses.replace(found, about=dataclasses.replace(found.about, command=""))
    assert "Made by" in page
    assert "Made by" not in in_a_notebook.html()  # Where nothing was typed.
    numbers = json.loads(found.json())
    assert (numbers["view"], numbers["command"]) == (name, COMMAND)
    assert found.subject()[:18] in svg


@pytest.mark.parametrize(
    ("name", "settings", "asked", "message"),
    [
        ("patch", {}, Asked([TEXT]), "needs --other"),
        ("patch", {}, Asked([TEXT], other="b"), r"--text has 10 tokens and --other 2.*'c'"),
        ("patch", {}, Asked([TEXT], other=TEXT), "same text"),
        ("grid", {}, Asked([TEXT], head=(2, 0)), "layers 0 to 1 of heads 0 to 3"),
        ("heads", {"network": "lstm"}, Asked([TEXT]), "no attention to look at"),
        ("lens", {"network": "lstm"}, Asked([TEXT]), "no layers to read early"),
        ("tokens", {"network": "encoder"}, Asked([TEXT]), "fills in what is masked"),
        ("alignment", {}, Asked([TEXT]), "networks that translate"),
        ("knockout", {"network": "lstm"}, Asked([TEXT]), "lstm has no"),
    ],
)
def test_what_a_network_cannot_show_is_refused(name, settings, asked, message):
    with pytest.raises(ConfigError, match=message):
        VIEWS[name](network(**settings), asked, COMMAND)


def test_without_a_text_random_tokens_stand_there_twice():
    found = VIEWS["model"](network(), Asked(), COMMAND)
    tokens = list(found.seen.queries.tokens)
    half = len(tokens) // 2
    assert tokens[1 : half + 1] == tokens[half + 1 :]
    assert np.isfinite(found.scores["induction"]).all()
    assert found.about.text.startswith("random tokens, twice")
    (ids,) = repeated(network())
    drawn = (len(ids) - 1) // 2
    losses = [-after_each(ids, p)[range(drawn + 1, 2 * drawn), ids[drawn + 2 :]].mean() for p in (None, without(0, 1))]
    assert found.changes_LN[0, 1] == pytest.approx(losses[1] - losses[0], abs=1e-4)  # Of what is known the second time.


def test_beside_an_alignment_stands_what_would_be_written_without_the_head_or_without_all_of_its_layer():
    restored, place = network(network="encoder_decoder"), "layers/cross_attention/heads"
    found = VIEWS["alignment"](restored, Asked(["ab c"], target="xyzzy"), COMMAND)
    seen, _, token = found.translation.shown()
    source, read = (jnp.array([ids]) for ids in found.translation.ids)
    module = build(restored.config)
    for head, off in ((2, [(1, 2)]), (-1, [(1, head) for head in range(4)])):
        params = restored.params
        kernel_LNHD = np.array(params["layers"]["cross_attention"]["output"]["kernel"])
        kernel_LNHD[tuple(zip(*off, strict=True))] = 0
        attention = params["layers"]["cross_attention"] | {"output": {"kernel": kernel_LNHD}}
        changed = params | {"layers": params["layers"] | {"cross_attention": attention}}
        logits_V = record(module, changed, read, (place,), Source.of(source))["logits"][0, token]
        p_V = special.softmax(np.asarray(logits_V, np.float64))
        ids = [BYTES.encode(name)[0] if len(name) == 1 else None for name in found.knocked.candidates]
        for k, id in enumerate(ids):
            if id is not None:
                assert found.knocked.after_LNK[1, head, k] == pytest.approx(p_V[id], abs=1e-5)
        assert any(id is not None for id in ids)
    assert seen.names[-1] == "mean"
    assert "without" in found.svg().lower()


def test_an_encoder_s_heads_are_checked_at_its_last_token():
    found = view("heads", network="encoder")
    assert found.knocked is not None
    assert not found.seen.causal


def test_a_text_in_a_notebook_needs_no_program(monkeypatch):
    monkeypatch.setattr("launch.pictures.restore_params", lambda checkpoint: network())
    assert see("runs/x", None, Asked([TEXT])).name == "heads"
