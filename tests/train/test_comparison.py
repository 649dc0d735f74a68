"""Means, intervals and p-values are those of the textbooks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from train.comparison import compare, estimate, holm


def test_an_interval_holds_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    found = [estimate(random.normal(3, 2, 5).tolist()) for _ in range(4000)]
    assert np.mean([one.low < 3 < one.high for one in found]) == pytest.approx(0.95, abs=0.015)
    assert estimate([4.0]).low == -math.inf


def test_holm_corrects_as_in_the_paper():
    # Holm 1979, by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, then no less than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_variants_are_compared_with_the_first_seed_by_seed():
    base = {0: 1.0, 1: 2.0, 2: 3.0}
    values = {"base": base, "better": {0: 0.8, 1: 1.85, 2: 2.7}, "fewer": {1: 2.5}, "same": dict(base), "none": {}}
    found = {one.variant: one for one in compare(values)}
    assert list(found) == ["base", "better", "fewer", "same"]
    better = found["better"]
    expected = stats.ttest_rel(list(values["better"].values()), list(base.values()))
    assert better.difference.mean == pytest.approx(-0.65 / 3)
    assert (better.difference.low, better.difference.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert better.p == pytest.approx(2 * expected.pvalue)  # Two variants are tested.
    assert (found["base"].difference, found["base"].p) == (None, None)
    assert (found["fewer"].difference.mean, found["fewer"].p) == (0.5, None)
    assert found["same"].p == 1
    assert found["fewer"].to_dict()["difference"] == {"mean": 0.5, "low": None, "high": None}
