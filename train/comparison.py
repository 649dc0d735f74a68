"""What several seeds of several variants say: means with intervals, and differences to the baseline, paired by seed.

Student's t for both; p-values are corrected for the number of comparisons by Holm's method (Holm 1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval; infinite ends where there is one seed."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A variant beside the baseline."""

    variant: str
    seeds: int
    value: Estimate
    difference: Estimate | None  # To the baseline, over the seeds that both have; None for the baseline itself.
    p: float | None  # That so large a difference is chance, two-sided, after Holm's correction; None where unknown.

    def to_dict(self) -> dict[str, Any]:
        """As `--json` gives it; what is not finite is None."""
        return _finite(asdict(self))


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of the mean, by Student's t."""
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, -math.inf, math.inf)
    half = (
        float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    )
    return Estimate(mean, mean - half, mean + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected so that the chance of any false discovery among them is what each says."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def compare(values: Mapping[str, Mapping[int, float]]) -> list[Comparison]:
    """Variants beside the first one, the baseline.

    Args:
      values: variant -> seed -> the metric; variants without any seed are left out.
    """
    there = {variant: of_seeds for variant, of_seeds in values.items() if of_seeds}
    baseline = next(iter(values), "")
    differences: dict[str, list[float]] = {}
    for variant, of_seeds in there.items():
        both = [seed for seed in of_seeds if seed in values[baseline]]
        differences[variant] = [of_seeds[seed] - values[baseline][seed] for seed in both]
    tested = [variant for variant in there if variant != baseline and len(differences[variant]) > 1]
    corrected = dict(zip(tested, holm([_p_value(differences[variant]) for variant in tested]), strict=True))
    return [
        Comparison(
            variant, len(of_seeds), estimate(list(of_seeds.values())),
            estimate(differences[variant]) if variant != baseline and differences[variant] else None,
            corrected.get(variant),
        )
        for variant, of_seeds in there.items()
    ]  # fmt: skip


def _p_value(differences: Sequence[float]) -> float:
    from scipy import stats

    if np.ptp(differences) == 0:  # No spread: the same in all, or the same difference.
        return 0.0 if np.any(differences) else 1.0
    found: Any = stats.ttest_1samp(differences, 0)
    return float(found.pvalue)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
