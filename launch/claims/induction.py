"""Heads divide the work: one layer notes which word came before, the next finds what follows."""

from __future__ import annotations

from launch.claims.claim import Chart, Outcome, Setup, at_least, at_most


def run(setup: Setup) -> Outcome:
    """Train two layers, and one, on words that repeat themselves; watch the heads; take some away."""
    import dataclasses
    import math

    from train.checkpoint import restore_params
    from train.data.induction import Induction as Task
    from train.induction import (
        ABLATIONS,
        held_out_rows,
        history,
        measure,
        previous_token_heads,
        steepest_rise,
        without,
    )

    steps = {"train.steps": 500, "optimizer.schedule": "constant"} if setup.fast else {}
    restored = setup.trained("induction", "induction", steps)
    single = setup.trained("induction_one_layer", "induction", {"model.num_layers": 1, "train.keep": 1, **steps})
    seen, batch = history(setup.out / "induction"), held_out_rows(restored)
    last, alone = seen[-1], measure(single, batch)
    off = previous_token_heads(last)
    ablated = []
    for m in seen[-1:] if setup.fast else seen:
        network = restore_params(f"{setup.out / 'induction'}@{m.step}")
        ablated += [{"x": m.step, "y": without(network, batch, off, kind), "series": kind} for kind in ABLATIONS]
    least_without = min(row["y"] for row in ablated[-len(ABLATIONS) :])
    rise, start, end = steepest_rise(seen, within=200)
    uniform = math.log(len(Task(restored.config.data.length).words))
    checks = [
        at_most("loss on the words that repeat, nats", last.loss, 0.7),
        at_least("best induction score of layer 1", max(last.induction[1]), 0.7),
        at_most("best induction score of layer 0", max(last.induction[0]), 0.1),
        at_least("best previous-token score", max(map(max, last.previous)), 0.25),
        at_least(f"rise of the best induction score within 200 steps ({start} to {end})", rise, 0.5),
        at_least(
            f"loss without the previous-token heads {off}, however ablated, against ln(words)", least_without, uniform
        ),
        at_least("loss of one layer", alone.loss, 2.7),
    ]
    rows = [{"x": m.step, "y": m.loss, "series": "loss on what repeats, nats"} for m in seen]
    rows += [{"x": m.step, "y": max(m.induction[1]), "series": "best induction score, layer 1"} for m in seen]
    rows += [{"x": m.step, "y": max(map(max, m.previous)), "series": "best previous-token score"} for m in seen]
    figures = {
        "history": [dataclasses.asdict(m) for m in seen],
        "without_previous": ablated,
        "one_layer": alone.loss,
    }
    notes = [
        f"Guessing among all words costs {uniform:.2f} nats. Without its previous-token heads the network is still "
        f"sure, of the wrong word, so that it loses more than that."
    ]
    guessing = [{"x": row["x"], "y": uniform, "series": "guessing"} for row in ablated[:: len(ABLATIONS)]]
    charts = [
        Chart("All at once", "step", "", rows),
        Chart(f"Loss without the heads {off}, by what stands in their place", "step", "nats", ablated + guessing),
    ]
    return Outcome(checks, figures, charts, notes)
