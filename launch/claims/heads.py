"""Heads divide the work: where two words have to be looked at, one head does not, and of several each has its own."""

from __future__ import annotations

from launch.claims.claim import Chart, Outcome, Setup, at_least, at_most

MANY = 4
SEEDS = (0, 1, 2)


def run(setup: Setup) -> Outcome:
    """Train one layer with four heads, and with one that is as wide, on words that follow from two; take heads away."""
    from train.data.lags import FAR, NEAR, WORDS
    from train.induction import held_out_rows, without
    from train.tasks import accuracy, looks_back

    seeds = SEEDS[:1] if setup.fast else SEEDS
    runs = {
        heads: [
            setup.trained(f"lags_{heads}_{seed}", "lags", {"model.num_heads": heads, "train.seed": seed})
            for seed in seeds
        ]
        for heads in (MANY, 1)
    }
    right = {heads: [accuracy(restored) for restored in some] for heads, some in runs.items()}
    many = runs[MANY][0]
    batch = held_out_rows(many)
    looks_ND, plain = looks_back(many, batch)[0], without(many, batch, [])
    table = [
        {"head": head, "near": float(looks_D[NEAR - 1]), "far": float(looks_D[FAR - 1]),
         "loss_without": without(many, batch, [(0, head)])}
        for head, looks_D in enumerate(looks_ND)
    ]  # fmt: skip
    nearest, farthest = (max(table, key=lambda row: row[where]) for where in ("near", "far"))
    checks = [
        at_least(f"{MANY} heads: right, in the worst run", min(right[MANY]), 0.98),
        at_most("one head that is as wide: right, in the best run", max(right[1]), 0.5),
        at_least("attention of one head to the nearer word", nearest["near"], 0.5),
        at_least("attention of another to the farther word", farthest["far"], 0.5),
        at_least("numbers of different heads of these", len({nearest["head"], farthest["head"]}), 2),
        at_least(
            "loss without either of them, less plain, nats",
            min(nearest["loss_without"], farthest["loss_without"]) - plain, 1.0,
        ),
    ]  # fmt: skip
    rows = [
        {"x": f"{heads} head{'s' * (heads > 1)}, seed {seed}", "y": share}
        for heads, shares in right.items()
        for seed, share in zip(seeds, shares, strict=True)
    ]
    looks = [
        {"x": f"head {row['head']}", "y": row[name], "series": what}
        for row in table
        for name, what in (("near", f"{NEAR} words back"), ("far", f"{FAR} words back"))
    ]
    losses = [{"x": "all heads", "y": plain}]
    losses += [{"x": f"without head {row['head']}", "y": row["loss_without"]} for row in table]
    charts = [
        Chart("One head against four, equal in width and parameters", "", "right", rows, "bar"),
        Chart("Where each head looks", "", "attention", looks, "bar"),
        Chart("Loss without a head", "", "nats per word", losses, "bar"),
    ]
    notes = [
        f"What a head reads is one average: to tell two words apart in it, they would have to weigh differently. "
        f"Guessing among {WORDS} words is right in {1 / WORDS:.0%}."
    ]
    return Outcome(checks, {"right": right, "loss": plain, "heads": table}, charts, notes)
