"""How a loss falls with the number of parameters and of tokens: L(N, D) = E + A / N^alpha + B / D^beta.

Fitted as Hoffmann et al. 2022 ("Training Compute-Optimal Large Language Models", section 3.3 and appendix D.2) do it:
the Huber loss of the differences of logarithms, from several starts. Intervals are those of the bootstrap over runs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from configs.schema import ConfigError
from train.comparison import CONFIDENCE, Estimate

HUBER = 1e-3  # Differences of logarithms beyond this count by their size rather than their square.
RESAMPLES = 200
SIZES = 3  # The fewest numbers of parameters, and of tokens, that tell a power law with an offset from others.
# Where a fit starts from: the share of the loss that is E, alpha, beta.
STARTS = tuple(itertools.product((0.1, 0.8), (0.15, 0.6), (0.15, 0.6)))
LOW, HIGH = (-50.0, -50.0, 0.0, 0.0, 0.0), (50.0, 50.0, np.inf, 3.0, 3.0)


class Point(NamedTuple):
    """What one run came to."""

    parameters: float
    tokens: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Law:
    """The five numbers, each with its interval over resampled runs, and how far off the law is."""

    E: Estimate  # What no size and no text would take away, in the loss's unit.
    A: Estimate
    alpha: Estimate
    B: Estimate
    beta: Estimate
    exponent: Estimate  # beta / (alpha + beta): the best N for C operations grows as C^exponent, D as C^(1 - exponent).
    error: float  # Median of |law / loss - 1| over the runs.

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """The loss of a run of that size."""
        return self.E.mean + self.A.mean / parameters**self.alpha.mean + self.B.mean / tokens**self.beta.mean


def check_sizes(sizes: Sequence[tuple[float, float]]) -> None:
    """Refuses runs (parameters, tokens) that a law cannot be fitted to.

    Raises:
      ConfigError: too few different numbers of parameters or of tokens.
    """
    for kind, flag in ((0, "--vary=model.width=16,32,64"), (1, "--vary=train.steps=100,200,400")):
        different = len({size[kind] for size in sizes})
        if different < SIZES:
            what = ("parameters", "tokens")[kind]
            raise ConfigError(
                f"--fit=scaling needs runs with at least {SIZES} different numbers of {what}, and these have "
                f"{different}: add {flag}."
            )


def fit(points: Sequence[Point], resamples: int, on_done: Callable[[int], object] = lambda done: None) -> Law:
    """The law of some runs; a mean is the fit to all of them, an interval holds 95% of the fits to resampled ones.

    Args:
      points: runs, with losses above 0; see `check_sizes`.
      on_done: called with how many resamples are done.

    Raises:
      ConfigError: too few sizes.
    """
    check_sizes([(point.parameters, point.tokens) for point in points])
    logs_P3 = np.log(np.array(points, np.float64))
    # Seen from the middle of the runs, A and alpha (and B and beta) hardly depend on each other.
    middle_2 = logs_P3[:, :2].mean(axis=0)
    logs_P3[:, :2] -= middle_2
    typical = float(np.exp(np.median(logs_P3[:, 2])))
    starts = [(*[np.log((1 - share) * typical / 2)] * 2, share * typical, alpha, beta) for share, alpha, beta in STARTS]
    best = min((_solve(logs_P3, start) for start in starts), key=lambda found: found[1])[0]
    random, fits = np.random.default_rng(0), []
    while len(fits) < resamples:
        chosen = logs_P3[random.integers(0, len(points), len(points))]
        if min(len(np.unique(chosen[:, kind])) for kind in (0, 1)) >= SIZES:
            fits.append(_solve(chosen, best)[0])
            on_done(len(fits))
    all_S6, mean_6 = np.array([_numbers(found, middle_2) for found in fits]), _numbers(best, middle_2)
    low_6, high_6 = np.quantile(all_S6, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    error = float(np.median(np.abs(np.expm1(_difference(best, logs_P3)))))
    numbers = [Estimate(*map(float, three)) for three in zip(mean_6, low_6, high_6, strict=True)]
    return Law(*numbers, error=error)


def _difference(values_5: np.ndarray, logs_P3: np.ndarray) -> np.ndarray:
    """log of the law minus log of the loss, [P]."""
    return np.log(_terms(values_5, logs_P3).sum(axis=0)) - logs_P3[:, 2]


def _slopes(values_5: np.ndarray, logs_P3: np.ndarray) -> np.ndarray:
    """Of `_difference` with respect to the five numbers, [P, 5]: each term by its share of the law."""
    terms_3P = _terms(values_5, logs_P3)
    law_P = terms_3P.sum(axis=0)
    of_a, of_b = terms_3P[:2] / law_P
    return np.stack([of_a, of_b, 1 / law_P, -of_a * logs_P3[:, 0], -of_b * logs_P3[:, 1]], axis=1)


def _terms(values_5: np.ndarray, logs_P3: np.ndarray) -> np.ndarray:
    """A / N^alpha, B / D^beta and E, [3, P], with the first two as logarithms in the middle of the runs."""
    a, b, e, alpha, beta = values_5
    return np.stack([np.exp(a - alpha * logs_P3[:, 0]), np.exp(b - beta * logs_P3[:, 1]), np.full(len(logs_P3), e)])


def _solve(logs_P3: np.ndarray, start: Sequence[float] | np.ndarray) -> tuple[np.ndarray, float]:
    from scipy.optimize import least_squares

    slopes: Any = _slopes  # Its type allows for names of methods alone.
    found = least_squares(
        _difference, start, slopes, (LOW, HIGH), x_scale="jac", loss="huber", f_scale=HUBER, args=(logs_P3,)
    )
    return found.x, float(found.cost)


def _numbers(values_5: np.ndarray, middle_2: np.ndarray) -> np.ndarray:
    """What `Law` is made of, [6], of a fit to logarithms that were counted from `middle_2`."""
    a, b, e, alpha, beta = values_5
    big_a, big_b = np.exp([a + alpha * middle_2[0], b + beta * middle_2[1]])
    return np.array([e, big_a, alpha, big_b, beta, beta / max(alpha + beta, 1e-12)])
