"""A law of scaling is found again in losses that follow it, and intervals hold it where they are noisy."""

from __future__ import annotations

import numpy as np
import pytest

from configs.schema import ConfigError
from train.scaling import Point, fit

TRUE = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28}


def runs(noise: float, seed: int = 0) -> list[Point]:
    random = np.random.default_rng(seed)
    return [
        Point(n, d, (1.7 + 400 / n**0.34 + 410 / d**0.28) * np.exp(noise * random.normal()))
        for n in np.geomspace(1e6, 1e10, 6) for d in np.geomspace(1e8, 1e12, 6)
    ]  # fmt: skip


def test_the_law_is_found_again():
    law = fit(runs(0.0), 3)
    for name, value in TRUE.items():
        assert getattr(law, name).mean == pytest.approx(value, rel=0.01), name
    assert law.exponent.mean == pytest.approx(0.28 / 0.62, rel=0.01)
    assert law.error < 1e-4
    assert law.loss(1e9, 1e10) == pytest.approx(1.7 + 400 / 1e9**0.34 + 410 / 1e10**0.28, rel=1e-3)


def test_intervals_tell_how_near_it_is_where_losses_are_noisy_and_one_is_wild():
    points = runs(0.002)
    points[7] = points[7]._replace(loss=points[7].loss * 1.5)
    law = fit(points, 40)
    for name, value in TRUE.items():
        found = getattr(law, name)
        assert found.low <= found.mean <= found.high
        assert abs(found.mean - value) < found.high - found.low, name  # 95% intervals miss it now and then.
    assert law.alpha.high - law.alpha.low < 0.15
    assert 1e-4 < law.error < 0.01


def test_too_few_sizes_are_refused():
    with pytest.raises(ConfigError, match="numbers of tokens, and these have 1"):
        fit([Point(n, 1e9, 3.0) for n in (1e6, 1e7, 1e8)], 3)
