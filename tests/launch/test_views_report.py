"""The report says what the run's files say, and a sample cannot become part of the page."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pytest
import vl_convert

from configs.convert import to_dict
from configs.schema import Config
from launch.views.report import Report, Translations, report_page
from tests.launch.test_views_alignment import VIEW
from tests.launch.test_views_attention import SVG, TOKENS, causal_weights, seen
from tests.launch.test_views_page import HOSTILE, Elements


def line(step: int, **metrics: float) -> dict[str, Any]:
    return {"step": step, **{name.replace("__", "/"): value for name, value in metrics.items()}}


REPORT = Report(
    config=to_dict(Config(name="r<u>n")),
    command=f"uv run -m launch.train --name='{HOSTILE}'",
    data=f"some text {HOSTILE}",
    metrics=[
        line(10, train__loss=5.0, train__learning_rate=1e-3, train__grad_norm=math.nan),
        line(20, train__loss=4.0, train__learning_rate=5e-4, train__grad_norm=1.5, eval__loss=4.2),
        line(20, eval__bits_per_byte=2.1),
    ],
    samples=[{"step": 20, "prompt": "def ", "text": HOSTILE}],
    baselines={"bigram": 3.5, "xz": 2.5, HOSTILE: 4.0},
    bits_per_byte=2.0,
    tables=[
        {
            "prompt": HOSTILE,
            "tokens": [
                {"text": " a", "logprob": math.log(0.25), "top": [
                    {"text": "b", "logprob": math.log(0.5)}, {"text": " a", "logprob": math.log(0.25)}]},
                {"text": HOSTILE, "logprob": math.log(0.01), "top": [{"text": "c", "logprob": math.log(0.9)}]},
            ],
        }
    ],
    attention=seen(causal_weights(1, 2, len(TOKENS))),
    structure_svg=SVG,
    facts=[("parameters", "4.1 M"), (HOSTILE, HOSTILE)],
)  # fmt: skip


@pytest.fixture(scope="module")
def elements() -> Elements:
    return Elements(report_page(REPORT))


@pytest.fixture(scope="module")
def charts(elements: Elements) -> dict[str, dict[str, Any]]:
    names = [attributes["data-chart"] for tag, attributes in elements.tags if "data-chart" in attributes]
    return {str(name): json.loads(text) for name, text in zip(names, elements.scripts, strict=False)}


def test_hostile_text_anywhere_in_a_run_stays_text(elements: Elements, charts: dict[str, dict[str, Any]]):
    own = [attributes for tag, attributes in elements.tags if tag == "script" and "data-chart" not in attributes]
    assert len(own) == 2  # the chart libraries, once, and the lines that start them
    assert "onclick" not in {name for _, attributes in elements.tags for name in attributes}
    assert "u" not in {tag for tag, _ in elements.tags}
    # title aside: the data, a fact and its name, a sample, a prompt, a token that was written, the command
    assert elements.text.count(HOSTILE) >= 6


def test_the_headline_compares_with_the_best_baseline(elements: Elements):
    assert "2.000" in elements.text
    assert "20%fewer bits than xz" in elements.text  # 2.0 against 2.5
    worse = Elements(report_page(dataclasses.replace(REPORT, bits_per_byte=3.0)))
    assert "20%MORE bits than xz" in worse.text


def test_curves_hold_every_finite_value_and_nothing_else(charts: dict[str, dict[str, Any]]):
    def values(name: str) -> list[tuple[int, float, str]]:
        return [
            (row["step"], row["value"], row["series"])
            for data in charts[name]["datasets"].values()
            for row in data
            if "series" in row
        ]

    assert values("learning-loss") == [(10, 5.0, "training"), (20, 4.0, "training"), (20, 4.2, "held out")]
    assert values("learning-bits") == [(20, 2.1, "held out")]
    assert values("small-grad_norm") == [(20, 1.5, "training")]
    assert values("small-learning_rate") == [(10, 1e-3, "training"), (20, 5e-4, "training")]
    assert "small-mfu" not in charts


def test_each_baseline_is_a_labelled_rule_and_labels_do_not_touch():
    close = dataclasses.replace(REPORT, baselines={"bigram": 2.51, "trigram": 2.5, "xz": 2.49})
    elements = Elements(report_page(close))
    spec = next(json.loads(script) for script in elements.scripts if "trigram" in script)
    rules = next(data for data in spec["datasets"].values() if "place" in data[0])
    assert [(rule["name"], rule["value"]) for rule in rules] == [
        ("bigram 2.51", 2.51), ("trigram 2.50", 2.5), ("xz 2.49", 2.49),
    ]  # fmt: skip
    assert (np.diff([rule["place"] for rule in rules]) >= 12).all()


def test_every_chart_can_be_drawn(charts: dict[str, dict[str, Any]]):
    for name, spec in charts.items():
        svg = vl_convert.vegalite_to_svg(spec)
        assert svg.startswith("<svg"), name
    assert "xz 2.50" in vl_convert.vegalite_to_svg(charts["learning-bits"])


def test_next_token_bars_are_the_probabilities_and_the_chosen_one_is_marked_even_if_unlikely(elements: Elements):
    bars = [a["style"] for _, a in elements.tags if a.get("class") == "bar"]
    assert bars == ["width:50.0%", "width:25.0%", "width:90.0%", "width:1.0%"]
    rows = [a["class"] for _, a in elements.tags if (a.get("class") or "").startswith("row")]
    assert rows == ["row", "row chosen", "row", "row chosen"]


def test_a_run_without_samples_tables_or_metrics_still_has_a_report():
    bare = dataclasses.replace(REPORT, metrics=[], samples=[], tables=[], baselines={}, facts=[])
    assert "What comes next" not in Elements(report_page(bare)).text


def test_the_report_holds_its_command_and_its_config(elements: Elements):
    assert REPORT.command in elements.text
    assert '"learning_rate": 0.001' in elements.text


def scores(bleu: float, chrf: float) -> dict[str, Any]:
    return {"bleu": bleu, "chrf": chrf, "bleu_signature": "tok:13a", "chrf_signature": "nc:6"}


TRANSLATED = dataclasses.replace(
    REPORT,
    metrics=[*REPORT.metrics, line(10, eval__bleu=3.0, eval__chrf=20.0), line(20, eval__bleu=12.5, eval__chrf=33.0)],
    samples=[{"step": 20, "prompt": "a source", "text": HOSTILE, "reference": "a reference"}],
    baselines={},
    attention=None,
    translations=Translations(
        languages=("en", "de"),
        sentences=200,
        scores={"copy": scores(1, 10), "dictionary": scores(4, 30), "greedy": scores(13, 34), "beam 4": scores(14, 35)},
        best="beam 4",
        shown=[{"source": HOSTILE, "translation": f"x{HOSTILE}", "reference": "Katze"}],
        view=VIEW,
        reference="die Katze",
    ),
)


def test_the_report_of_a_translator_has_its_scores_beside_the_baselines_and_its_alignment():
    elements = Elements(report_page(TRANSLATED))
    text = re.sub(r"\s+", " ", elements.text)
    assert "14.0BLEU, beam 4, 200 held-out sentences" in text
    for row in ("copy1.010.0", "dictionary4.030.0", "greedy13.034.0", "beam 414.035.0", "nc:6, tok:13a"):
        assert row in text, row
    for words in ("a source", "a reference", "Katze", "die Katze", f"x{HOSTILE}"):
        assert words in elements.text, words
    assert "Where it looks" not in text
    names = [attributes["data-chart"] for tag, attributes in elements.tags if "data-chart" in attributes]
    charts = {str(name): json.loads(script) for name, script in zip(names, elements.scripts, strict=False)}
    assert {"learning-bleu", "learning-chrf", "alignment"} <= set(charts)
    data = charts["learning-bleu"]["datasets"].values()
    assert [(row["step"], row["value"]) for rows in data for row in rows if "series" in row] == [(10, 3.0), (20, 12.5)]
    rules = [row["name"] for rows in data for row in rows if "place" in row]
    assert rules == ["beam 4 14.00", "dictionary 4.00", "copy 1.00"]
    for name in ("learning-bleu", "learning-chrf", "alignment"):
        assert vl_convert.vegalite_to_svg(charts[name]).startswith("<svg")


def test_an_encoder_may_look_ahead_and_an_lstm_looks_nowhere():
    both_ways = np.full((1, 2, len(TOKENS), len(TOKENS)), 1 / len(TOKENS), np.float32)
    with pytest.raises(ValueError, match="see the later key"):
        report_page(dataclasses.replace(REPORT, attention=seen(both_ways)))
    assert report_page(dataclasses.replace(REPORT, attention=seen(both_ways, causal=False)))
    lstm = Elements(report_page(dataclasses.replace(REPORT, attention=None)))
    assert "Where it looks" not in lstm.text
