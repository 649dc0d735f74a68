"""In-context learning from nothing: functions that no row shares with another are found out from the row's examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launch.claims.claim import Chart, Outcome, Setup, at_least, at_most

if TYPE_CHECKING:
    from train.in_context import Errors

LOOKUP = {"data.source": "lookup:8", "train.steps": 300, "train.eval_every": 0}


def run(setup: Setup) -> Outcome:
    """Train on planes with noise and on tables, and hold the errors against those of who knows how they are made."""
    from train.in_context import lookup_errors, regression_errors

    lines = regression_errors(setup.trained("regression", "regression", {"train.steps": 200} if setup.fast else {}))
    tables = lookup_errors(setup.trained("lookup", "recall", LOOKUP))
    best, squares = lines.others["ridge regression"], lines.others["least squares"]
    gap = max(mine - least for mine, least in zip(tables.network, tables.others["all remembered"], strict=True))
    checks = [
        at_least("squared error without an example, by that after all", lines.network[0] / lines.network[-1], 8.0),
        at_most("squared error over all places, by that of ridge regression", sum(lines.network) / sum(best), 1.1),
        at_most("after one example, by least squares", lines.network[1] / squares[1], 1.1),
        at_most("recall: errors beyond those of who remembers everything, at most", gap, 0.08),
        at_most("recall: errors after all examples", tables.network[-1], 0.25),
    ]
    charts = [
        Chart("A line through noise", "examples before", "squared error", _rows(lines)),
        Chart("Which value has this key?", "examples before", "wrong", _rows(tables)),
    ]
    notes = [
        "Every row has a slope or a table of its own, which weights cannot hold: all that is known of it stems from "
        "the examples before. Ridge regression is told how slopes are drawn, and its penalty follows; the network has "
        "to learn that. Who remembers everything is wrong about keys that come for the first time."
    ]
    figures = {name: {"network": errors.network, **errors.others} for name, errors in
               (("regression", lines), ("lookup", tables))}  # fmt: skip
    return Outcome(checks, figures, charts, notes)


def _rows(errors: Errors) -> list[dict[str, float | str]]:
    return [
        {"x": count, "y": error, "series": name}
        for name, line in {"this network": errors.network, **errors.others}.items()
        for count, error in enumerate(line)
    ]
