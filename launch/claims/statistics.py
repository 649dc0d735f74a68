"""It learns the statistics of language: from the frequency of tokens to more than any n-gram knows."""

from __future__ import annotations

from launch.claims.claim import Chart, Outcome, Setup, at_most

ORDERS = (1, 2, 3, 5)


def run(setup: Setup) -> Outcome:
    """The bits per byte of a run as it learnt, beside n-grams of the same tokens and a compressor."""
    import json
    import pathlib

    from configs.schema import ConfigError
    from train.baselines import baselines
    from train.checkpoint import restore_params
    from train.data.sources import open_corpus

    folder = pathlib.Path(setup.checkpoint.partition("@")[0])
    if not (folder / "metrics.jsonl").exists():
        raise ConfigError(f"--checkpoint={setup.checkpoint} is no run folder: its metrics.jsonl is what is shown here.")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    restored = restore_params(setup.checkpoint)
    found = baselines(open_corpus(restored.config.data), restored.tokenizer, ORDERS[:-1] if setup.fast else ORDERS)
    reached = [line["eval/bits_per_byte"] for line in lines if "eval/bits_per_byte" in line][-1]
    best = min((bits, name) for name, bits in found.items() if name != "xz")
    checks = [
        at_most(f"bits per byte of held-out text, against the best n-gram ({best[1]})", reached, best[0]),
        at_most("the same, against xz -9", reached, found["xz"]),
    ]
    last = lines[-1]["step"]
    rows = [{"x": line["step"], "y": line["train/bits_per_byte"], "series": "this network, as it learns"}
            for line in lines if "train/bits_per_byte" in line]  # fmt: skip
    rows += [{"x": x, "y": bits, "series": name} for name, bits in found.items() for x in (0, last)]
    passed = {name: next((row["x"] for row in rows if row["y"] <= bits), None) for name, bits in found.items()}
    samples = folder / "samples.jsonl"
    written = [json.loads(line) for line in samples.read_text("utf-8").splitlines()] if samples.exists() else []
    notes = [f"Step {sample['step']} writes: {sample['prompt']}{sample['text']}" for sample in written]
    figures = {"reached": reached, "baselines": found, "first_training_batch_below": passed}
    return Outcome(checks, figures, [Chart("Bits per byte, less is better", "step", "", rows)], notes)
