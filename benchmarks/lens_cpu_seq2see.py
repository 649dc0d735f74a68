"""Our side of `benchmarks.lens_cpu`, started by that program with a JSON object of settings; see `benchmarks.sides`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.sides import serve
from launch import start


class Looker:
    """A network of a shape, and texts."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import jax
        import numpy as np

        from benchmarks.decode_cpu_seq2see import our_settings
        from configs.convert import override
        from configs.schema import Config
        from model import build
        from model.apart import set_apart
        from model.lens.edits import scaled, spot
        from model.lens.knockout import knock_out_logits
        from model.lens.patch import edited
        from model.lens.places import HEADS
        from model.lens.record import record
        from model.sharding import parameter_shapes

        random = np.random.default_rng(0)
        self.module = module = build(override(Config(), our_settings(settings)))
        params = jax.tree.map(
            lambda shape: jax.device_put(0.02 * random.standard_normal(shape.shape, np.float32)),
            parameter_shapes(self.module),
        )
        apart = set_apart(params)
        tokens_1T = jax.device_put(
            random.integers(settings["vocabulary"], size=(1, settings["length"]), dtype=np.int32)
        )
        few_1T = tokens_1T[:, : settings["few"]]
        plain = jax.jit(lambda params, tokens_BT: module.apply({"params": params}, tokens_BT))
        without = jax.jit(
            lambda params, layer: edited(
                module, params, few_1T,
                {HEADS[0]: scaled(spot(module, HEADS[0], settings["few"], layer=layer, head=0), 0)},
            )[:, -1]
        )  # fmt: skip
        self.runs: dict[str, Callable[[], Any]] = {
            "forward": lambda: plain(apart, tokens_1T),
            "record": lambda: record(module, apart, tokens_1T),
            "separate": lambda: without(params, 3),
            "heads": lambda: knock_out_logits(module, params, few_1T, -1, tokens_at_once=2**20),
        }

    def run(self, name: str) -> Callable[[float], dict[str, float]]:
        """A function that measures one of the runs, compiled before."""
        import jax

        compiled: list[bool] = []

        def measure(_: float) -> dict[str, float]:
            if not compiled:
                jax.block_until_ready(self.runs[name]())
                compiled.append(True)
            began, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(self.runs[name]())
            return {"seconds": time.perf_counter() - began, "processor": time.process_time() - processor}

        return measure


def main() -> None:
    """Serve lines until there are none."""
    start.prepare_jax()
    import jax

    looker = Looker(json.loads(sys.argv[1]))
    serve({"version": jax.__version__}, **{name: looker.run(name) for name in looker.runs})


if __name__ == "__main__":
    main()
