"""What *it* stands for: a network that reads both ways tells by the last word, and a causal one cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launch.claims.claim import Chart, Outcome, Setup, at_least, at_most

if TYPE_CHECKING:
    from train.pronouns import Reading

SENTENCE = "The animal didn't cross the street because it was too"


def run(setup: Setup) -> Outcome:
    """Train both on pronouns, and read the sentences of the story with both and with a larger causal network."""
    import dataclasses

    from train.pronouns import held_out, story

    networks = {
        "reads in both directions": setup.trained("coreference", "coreference", _length(setup, 700, 150)),
        "reads from left to right": setup.trained(
            "coreference_causal", "coreference", {"model.network": "decoder", **_length(setup, 700, 60)}
        ),
    }
    both, causal = networks
    scores = {name: held_out(restored) for name, restored in networks.items()}
    readings = {name: story(restored) for name, restored in networks.items()}
    tired, wide = readings[both]
    one, other = readings[causal]
    checks = [
        at_least("too tired: P(animal) where it stands, reading in both directions", tired.probability["animal"], 0.9),
        at_least("too wide: P(street)", wide.probability["street"], 0.9),
        at_least("held-out pairs of nouns: the right one is the likelier", scores[both].right, 0.98),
        at_most("reading from left to right: the same", scores[causal].right, 0.5),
        at_least("its logits at it are the same in both, bit for bit", _same(one, other), 1),
    ]
    rows = [
        {"x": f"… too {word}: {noun}", "y": reading.probability[noun], "series": name}
        for name, pair in readings.items()
        for word, reading in zip(("tired", "wide"), pair, strict=True)
        for noun in ("animal", "street")
    ]
    figures = {name: dataclasses.asdict(score) for name, score in scores.items()}
    notes = []
    if setup.causal:
        same, far, weights = _causal_rows(setup.causal)
        checks.append(at_least(f"{setup.causal}: all that it computes up to it is the same, bit for bit", same, 1))
        figures[setup.causal] = {"row_of_it": weights, "largest_difference_at_the_last_word": far}
        notes.append(
            "A causal network's row of attention at it cannot depend on what follows: pictures in which it does are "
            "of networks that read in both directions."
        )
    return Outcome(checks, figures, [Chart("What it stands for", "", "probability", rows, "bar")], notes)


def _length(setup: Setup, steps: int, fast: int) -> dict[str, int]:
    return {"train.steps": fast, "train.eval_batches": 4} if setup.fast else {"train.steps": steps}


def _causal_rows(spec: str) -> tuple[bool, float, dict[str, float]]:
    """Whether both sentences are the same to a network up to *it*; how much they differ at the end; the row of *it*."""
    import jax.numpy as jnp
    import numpy as np

    from model import build
    from model.lens.record import record
    from train.checkpoint import restore_params

    restored = restore_params(spec)
    module, tokenizer = build(restored.config), restored.tokenizer
    texts = [tokenizer.prompt(f"{SENTENCE} {word}.") for word in ("tired", "wide")]
    places = ("layers/attention/weights", "layers/residual/after")
    one, other = (record(module, restored.params, jnp.array([ids], jnp.int32), places) for ids in texts)
    (it,) = tokenizer.encode(" it")
    at = texts[0].index(it)
    pairs = [(one["logits"][:, : at + 1], other["logits"][:, : at + 1])]
    pairs += [(one[place][:, :, ..., : at + 1, :], other[place][:, :, ..., : at + 1, :]) for place in places]
    same = all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
    far = float(np.abs(np.asarray(one["logits"][0, -1]) - np.asarray(other["logits"][0, -1])).max())
    row_S = np.asarray(one["layers/attention/weights"][:, 0, :, at, : at + 1]).mean((0, 1))
    return (
        same,
        far,
        {f"{n}: {tokenizer.token_text(id)}": float(w) for n, (id, w) in enumerate(zip(texts[0], row_S, strict=False))},
    )


def _same(one: Reading, other: Reading) -> bool:
    return one.output.tobytes() == other.output.tobytes()
