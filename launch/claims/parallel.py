"""It trains in parallel: how many matrix products of a training step have to wait for each other as rows get longer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launch.claims.claim import Chart, Outcome, Setup, at_least, at_most

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTHS = (32, 64, 128, 256, 512)
TOKENS = 2048  # In a step, whatever the length of its rows.
ROUNDS = 5
NETWORKS = {
    "attention": {"model.network": "decoder", "model.num_layers": 2, "model.width": 128, "model.num_heads": 4},
    "LSTM": {"model.network": "lstm", "model.num_layers": 2, "model.width": 145},  # As many parameters, within 1%.
}


def run(setup: Setup) -> Outcome:
    """Count the products that wait for each other, and time steps: in turn, so that a busy machine slows both."""
    import time

    lengths = LENGTHS[::4] if setup.fast else LENGTHS
    steps, waits, parameters = {}, {}, {}
    for name in NETWORKS:
        for length in lengths:
            steps[name, length], waits[name, length], parameters[name] = _step(name, length)
    best: dict[tuple[str, int], float] = {}
    if not setup.fast:
        compiled = {key: compile_step() for key, compile_step in steps.items()}
        best = dict.fromkeys(compiled, float("inf"))
        for _ in range(ROUNDS):
            for key, step in compiled.items():
                began = time.perf_counter()
                step()
                best[key] = min(best[key], time.perf_counter() - began)
    short, long = lengths[0], lengths[-1]
    growth = {name: waits[name, long] / waits[name, short] for name in NETWORKS}
    what = f"one after the other: products in a step on rows of {long} tokens, to {short}"
    checks = [
        at_most(f"attention, {what}", growth["attention"], 1.0),
        at_least(f"LSTM, {what}", growth["LSTM"], 0.9 * long / short),
    ]
    rows = [{"x": length, "y": count, "series": name} for (name, length), count in waits.items()]
    charts = [Chart("Matrix products that wait for each other", "tokens in a row", "in a step", rows, log_x=True)]
    times = [{"x": length, "y": seconds * 1e3, "series": name} for (name, length), seconds in best.items()]
    if times:
        charts.append(Chart(f"Time of a step of {TOKENS} tokens", "tokens in a row", "ms", times, log_x=True))
    notes = [
        f"Every step reads {TOKENS} tokens. A few cores are busy with any of these products, so that on a CPU the "
        f"chain hardly shows in the time; what computes thousands of numbers at once has to wait."
    ]
    figures = {"one_after_the_other": rows, "growth": growth, "milliseconds": times, "parameters": parameters}
    return Outcome(checks, figures, charts, notes)


def _step(name: str, length: int) -> tuple[Callable[[], Callable[[], None]], int, int]:
    """What compiles a training step and gives a function that takes it; its longest chain; how many parameters."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from configs.convert import override
    from configs.schema import Config
    from model import build
    from model.sharding import make_mesh, parameter_shapes
    from train.optimizer import make_optimizer
    from train.step import init_state, make_train_step, state_shape

    config = override(Config(), {**NETWORKS[name], "tokenizer.vocab_size": 512, "data.length": length})
    module, mesh = build(config), make_mesh(config.mesh, jax.devices()[:1])
    optimizer = make_optimizer(config, parameter_shapes(module))
    train_step = make_train_step(module, optimizer, config)
    places_BT = np.broadcast_to(np.arange(length, dtype=np.int32), (TOKENS // length, length))
    batch = {name: jnp.asarray(places_BT) for name in ("inputs", "targets", "positions")}
    batch["segments"] = jnp.ones_like(batch["inputs"])
    shape = state_shape(module, optimizer, config, mesh)
    with jax.set_mesh(mesh):
        chain = longest_chain(jax.make_jaxpr(train_step)(shape, batch).jaxpr)

    def compile_step() -> Callable[[], None]:
        state = init_state(module, optimizer, config, mesh)
        with jax.set_mesh(mesh):
            compiled = jax.jit(train_step).lower(state, batch).compile()

        def step() -> None:
            jax.block_until_ready(compiled(state, batch))

        step()
        return step

    return compile_step, chain, sum(leaf.size for leaf in jax.tree.leaves(shape.params))


def longest_chain(jaxpr: Any) -> int:
    """The most matrix products of a program (a jaxpr) that need each other's results, one after the other.

    A loop counts as its longest chain times its turns, as if each needed all of the one before.
    """
    depth: dict[Any, int] = {}
    for equation in jaxpr.eqns:
        before = max((depth.get(x, 0) for x in equation.invars if not hasattr(x, "val")), default=0)
        inside = max((longest_chain(part) for part in _programs(equation.params)), default=0)
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        own = 1 if equation.primitive.name == "dot_general" else inside * turns
        depth.update({x: before + own for x in equation.outvars})
    return max(depth.values(), default=0)


def _programs(params: dict[str, Any]) -> list[Any]:
    """The programs within an equation's parameters."""
    several = [x for value in params.values() for x in (value if isinstance(value, tuple | list) else [value])]
    return [getattr(x, "jaxpr", x) for x in several if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
