"""It reaches far where an LSTM forgets: which value stood behind this key, and which word stood so long ago."""

from __future__ import annotations

from typing import Any

from launch.claims.claim import Chart, Outcome, Setup, at_least, at_most

# As many parameters, within 2%, and Muon: with the preset's AdamW an LSTM learns nothing in so few steps.
LSTM = {
    "model.network": "lstm", "model.width": 46, "optimizer.name": "muon", "optimizer.learning_rate": 0.01,
}  # fmt: skip
PAIRS = (2, 4, 8, 16)
DISTANCES = (8, 32, 128, 512)
SELDOM = {"train.eval_every": 0, "train.checkpoint_every": 0}
COPIED_TOKENS = 2**11  # In a batch, so that a step is as much work at every distance.


def run(setup: Setup) -> Outcome:
    """Train attention and LSTMs on associative recall and on copying."""
    from train.tasks import accuracy

    recall: dict[str, dict[int, float]] = {}
    copying: dict[str, dict[int, float]] = {}
    all_pairs, distances = (PAIRS[2:3], DISTANCES[1:2]) if setup.fast else (PAIRS, DISTANCES)
    recall_steps, copying_steps = (400, 300) if setup.fast else (750, 600)
    for name, changes in (("attention", {}), ("LSTM", LSTM)):
        recall[name] = {
            pairs: accuracy(setup.trained(f"recall_{name}_{pairs}", "recall", _recall(pairs, recall_steps) | changes))
            for pairs in all_pairs
        }
        copying[name] = {
            distance: accuracy(
                setup.trained(f"copy_{name}_{distance}", "recall", _copying(distance, copying_steps) | changes)
            )
            for distance in distances
        }
    far = distances[-1]
    checks = [
        at_least("recall of 8 pairs: attention", recall["attention"][8], 0.98),
        at_most("recall of 8 pairs: an LSTM with as many parameters", recall["LSTM"][8], 0.5),
        at_least(
            f"copying over {far} words: attention less LSTM", copying["attention"][far] - copying["LSTM"][far], 0.2
        ),
    ]
    charts = [
        Chart("Which value stood behind this key?", "pairs", "right", _rows(recall)),
        Chart("Eight words again, after so many", "distance in words", "right", _rows(copying), log_x=True),
    ]
    return Outcome(checks, {"recall": recall, "copying": copying}, charts)


def _rows(lines: dict[str, dict[int, float]]) -> list[dict[str, Any]]:
    return [{"x": x, "y": y, "series": name} for name, line in lines.items() for x, y in line.items()]


def _recall(pairs: int, steps: int) -> dict[str, Any]:
    return {"data.source": f"recall:{pairs}", "data.length": 4 * pairs, "train.steps": steps, **SELDOM}


def _copying(distance: int, steps: int) -> dict[str, Any]:
    import jax

    length, devices = distance + 8, jax.device_count()
    return {
        "data.source": f"copy:{distance}",
        "data.length": length,
        "train.batch_size": max(1, COPIED_TOKENS // length // devices) * devices,  # As many rows on each.
        "train.steps": steps,
        **SELDOM,
    }
