"""The alignment view shows from which tokens of the source each token of the translation was written."""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import Any

import numpy as np
import pytest
import vl_convert

from launch.views.alignment import AlignmentView, Translation
from launch.views.attention_panels import Seen
from launch.views.pieces import Pieces, visible
from launch.views.view import About
from tests.launch.test_views_attention import ABOUT, SVG, attention_chart, causal_weights, drawn
from tests.launch.test_views_page import HOSTILE, Elements

SOURCE = ["the", " cat", " sees", " it", "<end>"]
WRITTEN = ["我", " Katze", HOSTILE, "<end>"]
STEP = 24


def shares(*shape: int, seed: int = 0) -> np.ndarray:
    weights = np.exp(np.random.default_rng(seed).normal(size=shape) * 2)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


READ = ["<start>", *WRITTEN[:-1]]
ALIGNMENT_LNTS = shares(2, 3, 4, 5)


def seen(queries: list[str], keys: list[str], weights: np.ndarray, causal: bool = False) -> Seen:
    return Seen(Pieces.whole(queries), Pieces.whole(keys), weights, causal)


VIEW = Translation(
    alignment=seen(WRITTEN, SOURCE, ALIGNMENT_LNTS),
    read=READ,
    ids=([], []),
    encoder=seen(SOURCE, SOURCE, shares(2, 3, 5, 5, seed=1)),
    decoder=seen(READ, READ, causal_weights(2, 3, 4), causal=True),
)


def alignment_chart(weights: np.ndarray = ALIGNMENT_LNTS, written: list[str] = WRITTEN) -> dict[str, Any]:
    return AlignmentView(ABOUT, aligned(weights, written)).chart()


def aligned(weights: np.ndarray, written: list[str] = WRITTEN) -> Translation:
    return dataclasses.replace(VIEW, alignment=seen(written, SOURCE, weights))


def shown(spec: dict[str, Any]) -> tuple[int, str]:
    value = next(param for param in spec["params"] if param["name"] == "pick")["value"][0]
    return value["layer"], value["head"]


def test_the_mean_of_a_layers_heads_is_shown_first_and_each_cell_is_its_weight():
    spec = alignment_chart()
    layer, head = shown(spec)
    assert head == "mean"
    mean_TS, cells = ALIGNMENT_LNTS[layer].mean(0), drawn(spec, "cells_marks")
    places = {(round(cell["y"] / STEP), round(cell["x"] / STEP)): cell for cell in cells}
    assert sorted(places) == list(np.ndindex(4, 5))
    for (query, key), cell in places.items():
        assert cell["opacity"] == pytest.approx(0.05 + 0.95 * np.sqrt(mean_TS[query, key]), abs=0.02)
        assert f"query: {visible(WRITTEN[query])}  ({query})" in cell["description"]
        assert f"key: {visible(SOURCE[key])}  ({key})" in cell["description"]


def test_every_head_and_the_mean_can_be_picked():
    pictures = alignment_chart()["datasets"]["pictures"]
    places = [(row["layer"], row["head"]) for row in pictures]
    assert places == [(n, h) for n in (0, 1) for h in ("0", "1", "2", "mean")]


def test_lines_join_each_written_token_with_the_source_tokens_it_was_written_from():
    spec = alignment_chart()
    mean_TS = ALIGNMENT_LNTS[shown(spec)[0]].mean(0)
    lines = drawn(spec, "concat_1_layer_0_marks")
    assert len(lines) == (np.rint(mean_TS * 1000) >= 5).sum()
    texts = [
        [item["text"] for item in sorted(drawn(spec, f"concat_1_layer_{layer}_marks"), key=lambda item: item["y"])]
        for layer in (3, 4)
    ]
    assert texts == [[visible(token) for token in tokens] for tokens in (WRITTEN, SOURCE)]


def test_the_layer_shown_first_is_the_one_that_points_at_one_token_which_is_not_the_end():
    alignment_LNTS = np.full((3, 2, 4, 5), 0.2, np.float32)
    alignment_LNTS[1] = np.eye(5)[4]  # all look at the end
    alignment_LNTS[2] = np.eye(4, 5)
    assert shown(alignment_chart(alignment_LNTS)) == (2, "mean")


def test_a_single_head_needs_no_mean():
    spec = alignment_chart(ALIGNMENT_LNTS[:1, :1])
    assert shown(spec) == (0, 0)
    assert len(spec["datasets"]["pictures"]) == 1


def test_the_page_has_all_three_charts_and_lets_no_token_become_markup():
    elements = Elements(AlignmentView(About(HOSTILE, HOSTILE, "seq2see <x>", SVG), VIEW).html())
    charts = [attributes["data-chart"] for tag, attributes in elements.tags if "data-chart" in attributes]
    assert charts == ["alignment", "encoder", "decoder"]
    assert not [tag for tag, _ in elements.tags if tag == "b"]
    specs = dict(zip(charts, map(json.loads, elements.scripts), strict=False))
    tokens = {
        name: next(param["value"] for param in spec["params"] if param["name"] == "tokens")
        for name, spec in specs.items()
    }
    expected = {"alignment": WRITTEN, "encoder": SOURCE, "decoder": READ}
    assert tokens == {name: [visible(token) for token in of] for name, of in expected.items()}
    packed = {name: spec["usermeta"]["packed"] for name, spec in specs.items()}
    assert [packed[name]["causal"] for name in charts] == [False, False, True]
    for spec in specs.values():
        assert vl_convert.vegalite_to_svg(spec).startswith("<svg")
    assert "seq2see <x>" in elements.text


def test_a_network_without_self_attention_has_the_alignment_alone():
    elements = Elements(AlignmentView(ABOUT, dataclasses.replace(VIEW, encoder=None, decoder=None)).html())
    assert [a["data-chart"] for _, a in elements.tags if "data-chart" in a] == ["alignment"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[:, :, :3], r"shape \(2, 3, 3, 5\).*\[layers, heads, 4, 5\]"),
        (lambda w: w * 0.9, "not to 1"),
        (lambda w: w - 0.2, "at least 0"),
    ],
)
def test_weights_that_are_no_alignment_are_refused(change: Any, message: str):
    view = AlignmentView(ABOUT, aligned(change(ALIGNMENT_LNTS)))
    with pytest.raises(ValueError, match=message):
        view.html()
    with pytest.raises(ValueError, match=message):
        view.chart()


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_picture_of_any_length_can_be_drawn(length: int):
    png = AlignmentView(ABOUT, aligned(ALIGNMENT_LNTS[:, :, :length], WRITTEN[:length])).png(scale=1)
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    assert min(width, height) > 100


def test_attention_in_both_directions_has_every_cell():
    weights_LNSS = shares(1, 2, 5, 5)
    spec = attention_chart(weights_LNSS, SOURCE, causal=False)
    places = {(round(cell["y"] / STEP), round(cell["x"] / STEP)) for cell in drawn(spec, "cells_marks")}
    assert sorted(places) == list(np.ndindex(5, 5))
    with pytest.raises(ValueError, match="see the later key"):
        attention_chart(weights_LNSS, SOURCE)
