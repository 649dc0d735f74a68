"""Our side of `benchmarks.train_cpu`: the step that `launch.train` runs, dispatched as its loop does.

Started by that program with a JSON object of settings; see `benchmarks.sides`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.sides import fastest, serve
from launch import start


class Trainer:
    """The network, optimizer and step of a config, fed with random tokens."""

    def __init__(self, config: Any) -> None:
        import jax
        import numpy as np

        from model import build
        from model.sharding import batch_sharding, make_mesh, parameter_shapes
        from train.metrics import train_flops_per_token
        from train.optimizer import make_optimizer
        from train.step import init_state, jit_train_step, make_train_step, state_shardings

        self.flops_per_token = train_flops_per_token(config)
        self.mesh, module = make_mesh(config.mesh), build(config)
        optimizer = make_optimizer(config, parameter_shapes(module))
        self.state = init_state(module, optimizer, config, self.mesh)
        shardings = state_shardings(module, optimizer, config, self.mesh)
        self.train_step = jit_train_step(
            make_train_step(module, optimizer, config), shardings, batch_sharding(self.mesh)
        )
        shape = (8, 2, config.train.batch_size, config.data.length)
        self.data = np.random.default_rng(0).integers(config.tokenizer.vocab_size, size=shape, dtype=np.int32)
        self.segments = np.ones(shape[2:], np.int32)
        self.positions = np.broadcast_to(np.arange(shape[3], dtype=np.int32), shape[2:])
        self.steps, self.pending = 0, None
        with jax.set_mesh(self.mesh):
            self.dispatch()

    def dispatch(self) -> float:
        """Start a step, then read the loss of the step before, as `train.loop` does."""
        import jax

        from train.evaluate import put

        tokens_BT, targets_BT = self.data[self.steps % len(self.data)]
        batch = {
            "inputs": tokens_BT, "targets": targets_BT, "segments": self.segments, "positions": self.positions
        }  # fmt: skip
        self.state, metrics = self.train_step(self.state, put(batch, self.mesh))
        self.steps += 1
        before, self.pending = self.pending, metrics
        return float(jax.device_get(before)["train/loss"]) if before else float("nan")

    def train(self, seconds: float) -> dict[str, float]:
        """As many steps as begin within so many seconds, to their end, after one that is not timed."""
        import jax

        with jax.set_mesh(self.mesh):
            loss = self.dispatch()  # Memory that has lain idle may have been taken away.
            jax.block_until_ready((self.state, self.pending))
            began, first = time.perf_counter(), self.steps
            while self.steps == first or time.perf_counter() - began < seconds:
                loss = self.dispatch()
        jax.block_until_ready((self.state, self.pending))
        return {"steps": self.steps - first, "seconds": time.perf_counter() - began, "loss": loss}


def peak(seconds: float) -> dict[str, float]:
    """FLOP/s of the fastest of several float32 matmuls, by XLA and by NumPy."""
    import jax
    import numpy as np

    def square(name: str, size: int) -> Callable[[], object]:
        a = np.random.default_rng(0).standard_normal((size, size), np.float32)
        if name == "numpy":
            return lambda: a @ a
        multiply, on_device = jax.jit(lambda a: a @ a), jax.device_put(a)
        return lambda: jax.block_until_ready(multiply(on_device))

    best = {name: fastest(partial(square, name), seconds / 2) for name in ("xla", "numpy")}
    return {"flops_per_second": max(best.values()), **best}


def main() -> None:
    """Serve lines until there are none."""
    start.prepare_jax()
    import jax

    from configs.convert import override
    from configs.presets import preset

    settings = json.loads(sys.argv[1])
    trainer = Trainer(override(preset("gpt2_small"), settings))
    facts = {"version": jax.__version__, "flops_per_token": trainer.flops_per_token}
    serve(facts, train=trainer.train, peak=peak)


if __name__ == "__main__":
    main()
