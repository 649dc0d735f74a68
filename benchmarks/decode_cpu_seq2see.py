"""Our side of `benchmarks.decode_cpu`: what `launch.sample` runs, with random weights.

Started by that program with a JSON object of settings; see `benchmarks.sides`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from benchmarks.sides import serve
from launch import start


class Writer:
    """A network of a shape, and prompts."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import jax
        import numpy as np

        from configs.convert import override
        from configs.schema import Config
        from model import build
        from model.packed import pack
        from model.sharding import parameter_shapes

        self.settings, random = settings, np.random.default_rng(0)
        self.module = build(override(Config(), our_settings(settings)))
        params = jax.tree.map(
            lambda shape: jax.device_put((0.02 * random.standard_normal(shape.shape, np.float32)).astype(shape.dtype)),
            parameter_shapes(self.module),
        )
        self.params = pack(self.module, params, settings["weights"])
        shape = settings["batch"], settings["prompt"]
        self.prompts = random.integers(settings["vocabulary"], size=shape, dtype=np.int32).tolist()
        for tokens in ("few", "many"):
            self.write(settings[tokens])

    def write(self, tokens: float) -> dict[str, float]:
        """Seconds of continuing every prompt by so many tokens, and of all processors together."""
        from model.generate import Sampling, generate

        began, busy = time.perf_counter(), time.process_time()
        chunks = generate(
            self.module, self.params, self.prompts, Sampling(temperature=0),
            max_tokens=int(tokens), seeds=[0] * len(self.prompts), ends=[-1],
        )  # fmt: skip
        written = sum(chunk.tokens_BC.shape[1] for chunk in chunks)
        assert written == tokens
        return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - busy}


def our_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """SmolLM2's kind of network."""
    return {
        "model.num_layers": settings["layers"], "model.width": settings["width"], "model.num_heads": settings["heads"],
        "model.attention": "gqa", "model.num_kv_heads": settings["kv_heads"],
        "model.feed_forward_width": settings["hidden"], "model.gated": True, "model.activation": "silu",
        "model.norm": "rms", "model.position": "rope", "model.rope_base": 100_000.0, "model.biases": False,
        "model.tied_embeddings": True, "model.dtype": settings["dtype"], "model.param_dtype": settings["dtype"],
        "model.layers": "scan", "tokenizer.vocab_size": settings["vocabulary"], **settings["set"],
    }  # fmt: skip


def bandwidth(seconds: float) -> dict[str, float]:
    """The fastest at which an array that no cache holds was read, by a sum."""
    import jax
    import jax.numpy as jnp

    array, add = jnp.ones(1 << 27, jnp.float32), jax.jit(jnp.sum)
    jax.block_until_ready(add(array))
    best, began = 0.0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        jax.block_until_ready(add(array))
        best = max(best, array.nbytes / (time.perf_counter() - start))
    return {"bytes_per_second": best}


def main() -> None:
    """Serve lines until there are none."""
    start.prepare_jax()
    import jax

    writer = Writer(json.loads(sys.argv[1]))
    serve({"version": jax.__version__}, write=writer.write, bandwidth=bandwidth)


if __name__ == "__main__":
    main()
