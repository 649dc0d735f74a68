"""It trains in parallel: how long a step takes when the same number of tokens stand in longer rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launch.claims.claim import Chart, Outcome, Setup, at_least

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTHS = (32, 64, 128, 256, 512)
TOKENS = 2048  # In a step, whatever the length of its rows.
ROUNDS = 5
NETWORKS = {  # With as many parameters, within 2%.
    "attention": {"model.network": "decoder", "model.num_layers": 2, "model.width": 128, "model.num_heads": 4},
    "LSTM": {"model.network": "lstm", "model.num_layers": 2, "model.width": 154},
}


def run(setup: Setup) -> Outcome:
    """Time training steps of both in turn, so that whatever else the machine does slows both; keep the fastest."""
    import time

    lengths = (LENGTHS[0], LENGTHS[2]) if setup.fast else LENGTHS
    steps, parameters = {}, {}
    for name in NETWORKS:
        for length in lengths:
            steps[name, length], parameters[name] = _step(name, length)
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(2 if setup.fast else ROUNDS):
        for key, step in steps.items():
            began = time.perf_counter()
            step()
            best[key] = min(best[key], time.perf_counter() - began)
    short, long = lengths[0], lengths[-1]
    growth = {name: best[name, long] / best[name, short] for name in NETWORKS}
    checks = [
        at_least(f"by what the LSTM's step grows from rows of {short} to {long} tokens, to attention's",
                 growth["LSTM"] / growth["attention"], 1.5),
    ]  # fmt: skip
    rows = [{"x": length, "y": seconds * 1e3, "series": name} for (name, length), seconds in best.items()]
    figures = {"milliseconds": rows, "growth": growth, "parameters": parameters}
    notes = [
        f"Every step reads {TOKENS} tokens. One after the other stand, per layer, as many matrix products as the row "
        f"has tokens in an LSTM, and always the same few with attention: on a device that computes much at once the "
        f"difference is larger than on a CPU."
    ]
    return Outcome(
        checks, figures, [Chart("Time of a training step", "tokens in a row", "ms", rows, log_x=True)], notes
    )


def _step(name: str, length: int) -> tuple[Callable[[], None], int]:
    """A function that takes one training step and waits for it, compiled; and how many parameters the network has."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from configs.convert import override
    from configs.schema import Config
    from model import build
    from model.sharding import make_mesh, parameter_shapes
    from train.optimizer import make_optimizer
    from train.step import init_state, make_train_step

    config = override(Config(), {**NETWORKS[name], "tokenizer.vocab_size": 512, "data.length": length})
    module, mesh = build(config), make_mesh(config.mesh, jax.devices()[:1])
    optimizer = make_optimizer(config, parameter_shapes(module))
    state = init_state(module, optimizer, config, mesh)
    tokens_BT = np.random.default_rng(0).integers(512, size=(TOKENS // length, length), dtype=np.int32)
    places_BT = np.broadcast_to(np.arange(length, dtype=np.int32), tokens_BT.shape)
    batch = {"inputs": tokens_BT, "targets": tokens_BT, "segments": np.ones_like(tokens_BT), "positions": places_BT}
    batch = {name: jnp.asarray(rows) for name, rows in batch.items()}
    with jax.set_mesh(mesh):
        compiled = jax.jit(make_train_step(module, optimizer, config)).lower(state, batch).compile()

    def step() -> None:
        jax.block_until_ready(compiled(state, batch))

    step()
    return step, sum(leaf.size for leaf in jax.tree.leaves(state.params))
