"""Attention aligns: in an encoder-decoder that writes words backwards, heads look at the word that is to be written."""

from __future__ import annotations

from launch.claims.claim import Chart, Outcome, Setup, at_least


def run(setup: Setup) -> Outcome:
    """Train an encoder-decoder on reversal, whose alignment is known, and see where its cross-attention looks most."""
    from train.tasks import backwards

    looks_LN = backwards(setup.trained("reversal", "reversal", {"train.steps": 500} if setup.fast else {}))
    rows = [
        {"x": f"{layer}.{head}", "y": float(share)}
        for layer, row in enumerate(looks_LN)
        for head, share in enumerate(row)
    ]
    check = at_least("how often the best head looks most at the word that is to be written", looks_LN.max(), 0.95)
    chart = Chart("How often each head looks most at the word to write", "layer.head", "share", rows, "bar")
    return Outcome([check], {"share": looks_LN.tolist()}, [chart])
