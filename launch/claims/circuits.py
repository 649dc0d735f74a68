"""What single heads of a larger network are for: finding repeats, and naming who is meant."""

from __future__ import annotations

from launch.claims.claim import Chart, Outcome, Setup, at_least, at_most

COUNT = 10  # Heads that are taken away together.


def run(setup: Setup) -> Outcome:
    """Take heads away from a network that was not trained here, and take one of its logits apart."""
    import numpy as np

    from configs.schema import ConfigError
    from train.checkpoint import restore_params
    from train.circuits import indirect_object, loss_on_repeats, repeated_tokens, scores, strongest

    if not setup.causal:
        raise ConfigError("--causal= names no network, and this claim is about one: give it, or leave circuits out.")
    restored = restore_params(setup.causal)
    model = restored.config.model
    tokens_BT = repeated_tokens(restored, rows=2 if setup.fast else 4, length=24 if setup.fast else 32)
    found = scores(restored, tokens_BT)
    top = {name: strongest(score_LN, 5) for name, score_LN in found.items()}
    finders = strongest(found["induction"], COUNT)
    others = [(layer, head) for layer in range(model.num_layers) for head in range(model.num_heads)]
    others = [head for head in others if head not in finders]
    random = np.random.default_rng(0)
    draws = [[others[i] for i in random.permutation(len(others))[:COUNT]] for _ in range(1 if setup.fast else 5)]
    plain, without = (loss_on_repeats(restored, tokens_BT, off) for off in ((), finders))
    at_random = [loss_on_repeats(restored, tokens_BT, off) for off in draws]
    ratio = (without - plain) / max(max(at_random) - plain, 1e-3)

    names = indirect_object(restored)
    movers = strongest(names.written_LN, 5)
    kept = {head: float(names.without_LN[head]) for head in movers}
    giver = len(names.tokens) - names.tokens[::-1].index(" John") - 1
    checks = [
        at_least("loss on repeats without the ten strongest induction heads, less plain", without - plain, 1.0),
        at_least("that, by what ten random heads do at most", ratio, 3.0),
        at_most("what components write, less the difference of the logits",
                abs(names.sum_of_parts - names.difference), 1e-4),
        at_least("P(Mary) is above P(John): difference of the logits", names.difference, 0.5),
        at_most("the same with the other prompt's vector at the second name, behind layer 0",
                float(names.patched_LS[0, giver]), 0.0),
    ]  # fmt: skip
    rows = [{"x": "plain", "y": plain}, {"x": "without ten induction heads", "y": without}]
    rows += [{"x": f"without ten random heads, {n}", "y": loss} for n, loss in enumerate(at_random, start=1)]
    written = [
        {"x": _name(head), "y": float(value), "series": what}
        for head in movers
        for what, value in (
            ("writes", names.written_LN[head]),
            ("is lost without it", names.difference - names.without_LN[head]),
        )
    ]
    moves = [
        {"x": f"{place}: {token}", "y": float(names.patched_LS[layer, place]), "series": f"behind layer {layer}"}
        for layer in (0, model.num_layers // 2, model.num_layers - 1)
        for place, token in enumerate(names.tokens)
    ]
    notes = [
        "Strongest heads by " + "; ".join(f"{name}: {', '.join(map(_name, heads))}" for name, heads in top.items())
    ]
    repaired = [_name(head) for head in movers if names.difference - kept[head] < 0.5 * names.written_LN[head]]
    if repaired:
        notes.append(f"Without {', '.join(repaired)} less is lost than it writes: later heads make up for it.")
    figures = {
        "loss": plain, "without_induction": without, "without_random": at_random, "induction_heads": finders,
        "top": top, "difference": names.difference, "sum_of_parts": names.sum_of_parts,
        "writers": [{"head": _name(head), "writes": float(names.written_LN[head]), "left_without": kept[head]}
                    for head in movers],
    }  # fmt: skip
    charts = [
        Chart("Loss on random tokens that repeat", "", "nats per token", rows, "bar"),
        Chart(
            "Mary or John: five heads that write most for it", "layer.head", "difference of the logits", written, "bar"
        ),
        Chart("With one vector of “… Mary gave a drink to”", "token", "difference of the logits", moves, "bar"),
    ]
    return Outcome(checks, figures, charts, notes)


def _name(head: tuple[int, int]) -> str:
    return f"{head[0]}.{head[1]}"
