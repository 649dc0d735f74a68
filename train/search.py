"""Choosing settings by what earlier choices came to, instead of trying all: by Optuna, from the table of results.

The study itself is kept nowhere. Its sampler has a seed, so the same command asks for the same trials in the same
order, and those whose runs are in the table are answered from there: a search that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.ablations import Range, Variant, label
from configs.convert import leaves
from configs.schema import Config, ConfigError
from train.ablation import Corpora, Results, RunPlan, plan, train_group
from train.together import NUMBERS, Line

if TYPE_CHECKING:
    from optuna import Study, Trial

SAMPLERS = ("tpe", "random")
DIGITS = 4  # Of a number that is chosen, so that it can be given by hand as well: the results are known then.
Axis = Sequence[Variant] | Range


@dataclass(frozen=True)
class Searched:
    """One trial: its runs, one for each seed, and how it ended."""

    runs: list[RunPlan]
    value: float | None  # Mean over the seeds; None if it was pruned, failed or cannot be.
    why: str = ""  # There is no value, in a sentence.
    failed: bool = False  # By an error, so that it is tried again the next time.


def search(
    base: Config,
    axes: Sequence[Axis],
    sampler: str,
    trials: int,
    prune: bool,
    seeds: Sequence[int],
    metric: str,
    results: Results,
    corpora: Corpora,
    on_step: Callable[[int], object] = lambda done: None,
) -> list[Searched]:
    """Tries `trials` choices from `axes`, the lower `metric` the better; the first is `base` itself if it is one.

    Args:
      sampler: `tpe`, the tree-structured Parzen estimator (Bergstra et al. 2011), or `random`.
      prune: end a trial that is worse at an evaluation than half of the earlier ones were there.
      metric: by its name in metrics.jsonl.
      on_step: called with how many steps of trials are over, of `trials` times train.steps.

    Returns:
      The trials, in the order in which they were chosen; one that was chosen twice is there once.

    Raises:
      ConfigError: Optuna is not installed.
    """
    study, found, steps = _study(base, axes, sampler, prune), {}, 0

    def count_step() -> None:
        nonlocal steps
        steps += 1
        on_step(steps)

    for number in range(trials):
        trial = study.ask()
        variant = _chosen(trial, axes)
        try:
            runs = plan(base, [variant], seeds, "", corpora)
        except ConfigError as error:  # Two choices that contradict each other.
            study.tell(trial, state=_state("FAIL"))
            found[label(variant)] = Searched([], None, f"{label(variant)}: {error}")
            continue
        one = _tried(trial, runs, metric, results, corpora, base, _free(axes), count_step)
        found[label(variant)] = one
        steps = (number + 1) * base.train.steps
        if one.value is not None:
            study.tell(trial, one.value)
        else:
            study.tell(trial, state=_state("FAIL" if one.failed else "PRUNED"))
    return list(found.values())


def _tried(
    trial: Trial,
    runs: list[RunPlan],
    metric: str,
    results: Results,
    corpora: Corpora,
    base: Config,
    free: Sequence[str],
    on_step: Callable[[], object],
) -> Searched:
    """Trains what is missing of a trial and tells the sampler how it went, evaluation by evaluation."""
    missing = [run for run in runs if not _ended(run, results)]
    there = [dict(results.lines(run, metric)) for run in runs if run not in missing]
    last = runs[0].config.train.steps

    def hopeless(lines: list[list[Line]]) -> bool:
        """Whether to end the trial at the evaluation that lines end with."""
        step = max(int(own[-1]["step"]) for own in lines)
        values = [own[-1].get(metric) if own[-1]["step"] == step else None for own in lines]
        known = [value for value in values if value is not None]
        if step == last or not known:  # What is compared may not be measured at evaluations.
            return False
        numbers = known + [of_step[step] for of_step in there if step in of_step]
        if len(numbers) < len(runs):  # One of the runs has diverged.
            return True
        trial.report(float(np.mean(numbers)), step)
        return trial.should_prune()

    if missing and all(results.done(run) for run in runs if run not in missing):
        train_group(missing, results, corpora, base, on_step, hopeless, free)
    else:
        for step in sorted(set.intersection(*map(set, there)) - {last}):
            trial.report(float(np.mean([of_step[step] for of_step in there])), step)
    ended = [results.lines(run, metric)[-1][1] for run in runs if results.done(run) and results.lines(run, metric)]
    if len(ended) == len(runs) and np.isfinite(np.mean(ended)):
        return Searched(runs, float(np.mean(ended)))
    failed = not all(_ended(run, results) for run in runs)
    return Searched(runs, None, f"{runs[0].variant}: {_why(runs, metric, results)}", failed)


def _why(runs: Sequence[RunPlan], metric: str, results: Results) -> str:
    """Why a trial has no value."""
    errors = [results.error(run) for run in runs if results.error(run)]
    if errors:
        return errors[0]
    points = [results.lines(run, metric) for run in runs]
    if not all(points):
        return f"no {metric}"
    step = min(of_run[-1][0] for of_run in points)
    return f"pruned at step {step}, {metric} {np.mean([dict(of_run)[step] for of_run in points]):.4f}"


def _ended(run: RunPlan, results: Results) -> bool:
    """Whether there is nothing to train any more."""
    return results.status(run) in ("done", "pruned") or _diverged(run, results)


def _diverged(run: RunPlan, results: Results) -> bool:
    """Whether the run stopped at a loss that was not finite or spiked: an answer, not a failure to try again."""
    return results.status(run) == "failed" and any(value for _, value in results.lines(run, "train/anomaly"))


def _study(base: Config, axes: Sequence[Axis], sampler: str, prune: bool) -> Study:
    """A new study whose first trial is `base` itself, as far as the axes have it."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            f"--search={sampler} needs the package optuna: pip install 'seq2see[search]', or leave it at none for a "
            f"grid."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    pruner: Any = optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner()
    study = optuna.create_study(sampler=kinds[sampler](seed=base.train.seed % 2**32), pruner=pruner)
    values, first = {name: value for name, _, value in leaves(base)}, {}
    for axis in axes:
        if isinstance(axis, Range):
            if axis.low <= values[axis.setting] <= axis.high:
                first[axis.setting] = values[axis.setting]
        else:
            same = [one for one in axis if all(values[name] == value for name, value in one.items())]
            first |= {_name(axis): label(one) for one in same}
    if first:
        study.enqueue_trial(first)
    return study


def _chosen(trial: Trial, axes: Sequence[Axis]) -> Variant:
    """What the sampler chooses from each axis."""
    variant: Variant = {}
    for axis in axes:
        if not isinstance(axis, Range):
            choices = {label(one): one for one in axis}
            variant |= choices[trial.suggest_categorical(_name(axis), list(choices))]
        elif isinstance(axis.low, int):
            variant[axis.setting] = trial.suggest_int(axis.setting, axis.low, int(axis.high), log=axis.log)
        else:
            value = trial.suggest_float(axis.setting, axis.low, axis.high, log=axis.log)
            variant[axis.setting] = float(f"{value:.{DIGITS}g}")
    return variant


def _name(axis: Sequence[Variant]) -> str:
    """The settings of a list of variants, by which the sampler knows it."""
    return " ".join(axis[0])


def _free(axes: Sequence[Axis]) -> list[str]:
    """Settings that trials differ in and one compiled program can leave open."""
    names = [name for axis in axes for name in ([axis.setting] if isinstance(axis, Range) else axis[0])]
    return [name for name in names if name in NUMBERS]


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]
