"""A few examples are enough: the same questions, with more and more of them answered before."""

from __future__ import annotations

from launch.claims.claim import Chart, Outcome, Setup, at_least

TASKS = ("capitals", "antonyms")


def run(setup: Setup) -> Outcome:
    """Ask a network that was not trained here with examples in the prompt and without."""
    from configs.schema import ConfigError
    from model import build
    from train.checkpoint import restore_params
    from train.fewshot import shot_curves

    if not setup.causal:
        raise ConfigError("--causal= names no network, and this claim is about one: give it, or leave few_shot out.")
    restored = restore_params(setup.causal)
    shots, tasks = ((0, 4), TASKS[:1]) if setup.fast else ((0, 1, 2, 4, 8), TASKS)
    found = shot_curves(
        build(restored.config), restored.params, restored.tokenizer, tasks, shots,
        draws=1 if setup.fast else 2, questions=10 if setup.fast else 20, seed=0,
    )  # fmt: skip
    none, most = ([one for one in found if one.shots == count] for count in (0, shots[-1]))
    checks = [
        at_least(
            f"{after.task}: right with {after.shots} examples, less with none", after.accuracy - before.accuracy, 0.1
        )
        for before, after in zip(none, most, strict=True)
    ]
    rows = [{"x": one.shots, "y": one.accuracy, "series": one.task} for one in found]
    chart = Chart("Right answers", "examples in the prompt", "share", rows)
    notes = [f"Exact 95% intervals of {most[0].asked} answers are in claims.json; launch.evaluate --shots asks more."]
    return Outcome(checks, {"curves": [one.to_dict() for one in found]}, [chart], notes)
