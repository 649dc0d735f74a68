"""The attention view shows the weights that it was given, at the right tokens."""

from __future__ import annotations

import json
import re
import struct
import zlib
from base64 import b64decode
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import vl_convert

from launch.views.attention import HeadsView
from launch.views.attention_panels import Seen
from launch.views.pieces import Pieces, visible
from launch.views.view import About
from tests.launch.test_views_page import HOSTILE, Elements

TOKENS = ["the", " cat", "\n", " cat", "我", " cat"]  # the same token thrice: places, not labels, must be told apart
SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'
ABOUT = About("a network, step 3", "the cat", "uv run -m launch.attend <x>", SVG)


def causal_weights(layers: int, heads: int, length: int, seed: int = 0) -> np.ndarray:
    scores_LNTS = np.random.default_rng(seed).normal(size=(layers, heads, length, length)) * 2
    scores_LNTS = np.where(np.tril(np.ones((length, length), bool)), scores_LNTS, -np.inf)
    exp_LNTS = np.exp(scores_LNTS)
    return (exp_LNTS / exp_LNTS.sum(-1, keepdims=True)).astype(np.float32)


def seen(weights: np.ndarray, tokens: Sequence[str] = TOKENS, **kind: Any) -> Seen:
    return Seen(Pieces.whole(tokens), Pieces.whole(tokens), weights, **kind)


def attention_chart(weights: np.ndarray, tokens: Sequence[str] = TOKENS, **kind: Any) -> dict[str, Any]:
    return HeadsView(ABOUT, seen(weights, tokens, **kind)).chart()


def drawn(spec: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The items of the marks called `name` after Vega has run."""

    def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if node.get("name") == name:
            yield from node["items"]
        for child in node.get("items", []):
            yield from walk(child)

    return list(walk(vl_convert.vegalite_to_scenegraph(spec)["scenegraph"]))


def picked(weights_LNTS: np.ndarray, spec: dict[str, Any]) -> np.ndarray:
    value = next(param for param in spec["params"] if param["name"] == "pick")["value"][0]
    return weights_LNTS[value["layer"], value["head"]]


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" a b", "␣a␣b"),
        ("\n", "↵"),
        ("\t\r", "⇥␍"),
        ("", "∅"),
        ("我", "我"),
        ("x", "x"),
        ("\x06\x7f\x85", "␆␡\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_white_space_is_made_visible(token: str, shown: str):
    assert visible(token) == shown


def test_each_cell_of_the_heat_map_is_the_weight_of_its_query_and_key():
    weights_LNTS = causal_weights(2, 3, len(TOKENS))
    spec = attention_chart(weights_LNTS)
    weights_TS, step, cells = picked(weights_LNTS, spec), 24, drawn(spec, "cells_marks")
    assert len(cells) == 6 * 7 / 2
    for cell in cells:
        query, key = round(cell["y"] / step), round(cell["x"] / step)
        assert key <= query
        assert cell["opacity"] == pytest.approx(0.05 + 0.95 * np.sqrt(weights_TS[query, key]), abs=0.02)
        assert f"query: {visible(TOKENS[query])}  ({query})" in cell["description"]
        assert f"key: {visible(TOKENS[key])}  ({key})" in cell["description"]


def test_lines_join_each_query_with_the_keys_it_looks_at_and_grow_with_the_weight():
    weights_LNTS = causal_weights(2, 3, len(TOKENS), seed=1)
    spec = attention_chart(weights_LNTS)
    weights_TS, step = picked(weights_LNTS, spec), 24
    lines = drawn(spec, "concat_1_layer_0_marks")
    assert len(lines) == (np.rint(weights_TS * 1000) >= 5).sum()
    for line in lines:
        query, key = sorted((line["y"], line["y2"]), reverse=True)
        weight = weights_TS[int(query // step), int(key // step)]
        assert line["strokeWidth"] == pytest.approx(0.4 + 5.6 * weight, abs=0.01)


def test_all_tokens_stand_on_both_sides_in_order():
    spec = attention_chart(causal_weights(1, 1, len(TOKENS)))
    for layer in (3, 4):
        texts = sorted(drawn(spec, f"concat_1_layer_{layer}_marks"), key=lambda item: item["y"])
        assert [item["text"] for item in texts] == [visible(token) for token in TOKENS]


def test_the_small_picture_of_a_head_is_its_weights():
    weights_LNTS = causal_weights(1, 2, 6)
    pictures = attention_chart(weights_LNTS)["datasets"]["pictures"]
    for head, row in enumerate(pictures):
        png = b64decode(row["picture"].partition(",")[2])
        width, height = struct.unpack(">II", png[16:24])
        data = png[png.index(b"IDAT") + 4 :]
        lines = np.frombuffer(zlib.decompressobj().decompress(data), np.uint8).reshape(height, width + 1)
        level_TS = lines[8::16, 1:][:, 8::16]
        assert (level_TS[np.triu_indices(6, 1)] == 0).all()  # the masked half is transparent
        expected = 1 + np.rint(14 * np.sqrt(weights_LNTS[0, head][np.tril_indices(6)]))
        assert (level_TS[np.tril_indices(6)] == expected).all()


def test_the_head_shown_first_looks_at_particular_tokens_back_in_the_text():
    length = 8
    weights_LNTS = np.tile(np.eye(length, dtype=np.float32), (3, 2, 1, 1))  # every head looks at itself,
    weights_LNTS[0, 1] = np.eye(length, k=-1)  # one at the token before,
    weights_LNTS[2, 0] = np.eye(length, k=-3)  # one three back:
    weights_LNTS[0, 1, 0, 0] = 1
    weights_LNTS[2, 0, :3, 0] = 1
    spec = attention_chart(weights_LNTS, list("abcdefgh"))
    assert next(param for param in spec["params"] if param["name"] == "pick")["value"] == [{"layer": 2, "head": 0}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[0], r"shape \(2, 6, 6\).*6 tokens"),
        (lambda w: w[..., :5, :5], r"shape \(2, 2, 5, 5\)"),
        (lambda w: w * np.where(np.arange(6) == 4, 1.1, 1.0)[:, None], r"query 4 sum to 1\.1000, not to 1"),
        (lambda w: w[..., ::-1, ::-1], r"see the later key"),
        (lambda w: w * np.nan, "at least 0"),
        (lambda w: w - 0.1, "at least 0"),
    ],
)
def test_weights_that_are_not_causal_attention_are_refused(change: Any, message: str):
    weights_LNTS = change(causal_weights(2, 2, 6))
    with pytest.raises(ValueError, match=message):
        HeadsView(ABOUT, seen(weights_LNTS)).html()
    with pytest.raises(ValueError, match=message):
        HeadsView(ABOUT, seen(weights_LNTS)).chart()


def test_rows_may_sum_to_less_than_one_only_where_the_model_has_sinks():
    weights_LNTS = causal_weights(1, 1, 6) * 0.7
    assert attention_chart(weights_LNTS, sinks=True)
    with pytest.raises(ValueError, match="not to 1"):
        attention_chart(weights_LNTS)
    with pytest.raises(ValueError, match="not to 1"):
        attention_chart(weights_LNTS / 0.7 * 1.1, sinks=True)


def test_the_page_says_what_it_shows_and_lets_no_token_become_markup():
    tokens = [HOSTILE, *TOKENS[1:]]
    about = About(HOSTILE, f"{HOSTILE} cat我", "seq2see <x>", SVG)
    elements = Elements(HeadsView(about, seen(causal_weights(2, 3, 6), tokens)).html())
    assert [a for tag, a in elements.tags if tag == "script"] == [
        {"type": "application/json", "data-chart": "attention"}, {}, {},
    ]  # fmt: skip
    assert not [tag for tag, _ in elements.tags if tag == "b"]
    spec = json.loads(elements.scripts[0])
    assert next(param for param in spec["params"] if param["name"] == "tokens")["value"][0] == visible(HOSTILE)
    text = re.sub(r"\s+", " ", elements.text)
    for words in ("2 layers × 3 heads", "softmax(QKᵀ/√d)", "not an explanation", "seq2see <x>", "cat我"):
        assert words in text


@pytest.mark.parametrize("length", [1, 2, 6])
def test_a_picture_of_any_length_can_be_drawn(length: int):
    png = HeadsView(ABOUT, seen(causal_weights(1, 2, length), TOKENS[:length])).png(scale=1)
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    assert width > 400
    assert height > 100


def test_a_still_picture_has_its_model_text_head_and_command_in_it():
    svg = HeadsView(ABOUT, seen(causal_weights(2, 3, 6))).svg()
    for words in ("a network, step 3", "the cat", "uv run -m launch.attend &lt;x&gt;", "looks in layer"):
        assert words in svg
