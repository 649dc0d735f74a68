"""µP: what a wider network computes is as large, moves as fast, and wants the same learning rate."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from configs.check import check
from configs.convert import override
from configs.derived import attention_scale, logit_scale
from configs.schema import ConfigError
from model import build
from model.exchange.settings import canonical
from model.lens.record import record
from model.sharding import parameter_shapes
from train.optimizer import make_optimizer
from train.step import initial_state, make_train_step


def wide(width: int, base_width: int):
    settings = {
        "optimizer.learning_rate": 1e-2, "optimizer.schedule": "constant", "optimizer.warmup_steps": 0,
        "optimizer.weight_decay": 0.0, "optimizer.clip_norm": 0.0, "train.spike_factor": 0.0,
    }  # fmt: skip
    return override(tiny(width=width, base_width=base_width, num_layers=1), settings)


def test_scores_logits_and_steps_shrink_with_the_width():
    base, wider, off = wide(16, 16), wide(64, 16), wide(64, 0)
    assert (attention_scale(base), logit_scale(base)) == (4**-0.5, 1)
    assert attention_scale(wider) == 4**0.5 / 16  # Heads are 4 times as wide, and scores fall with 1 / width.
    assert logit_scale(wider) == 1 / 4
    fixed = override(wider, {"model.head_width": 4})
    assert attention_scale(fixed) == 4**-0.5
    assert canonical(wider)["logit_scale"] == 1 / 4  # So that a format that has no such thing refuses it.
    shapes = parameter_shapes(build(wider))
    params = random_params(build(wider))

    @jax.jit
    def ratios(params):
        """By how much updates of the wider network differ with µP."""
        moved, plain = (
            make_optimizer(config, shapes).update(params, make_optimizer(config, shapes).init(params), params)[0]
            for config in (wider, off)
        )
        return jax.tree.map(lambda a, b: jnp.mean(jnp.abs(a)) / jnp.mean(jnp.abs(b)), moved, plain)

    for path, ratio in jax.tree_util.tree_leaves_with_path(ratios(params)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert ratio == pytest.approx(1 / 4 if name.startswith("layers") and "kernel" in name else 1, rel=1e-5), name


@pytest.mark.slow  # It compiles six training steps.
def test_what_is_computed_moves_as_far_in_a_wide_network():
    tokens_BT = random_tokens(8, 17)
    batch = {
        "inputs": tokens_BT[:, :-1], "targets": tokens_BT[:, 1:], "segments": np.ones((8, 16), np.int32),
        "positions": np.tile(np.arange(16, dtype=np.int32), (8, 1)),
    }  # fmt: skip

    def moved(config) -> tuple[float, float]:
        """How far the residual stream and the logits have moved in four steps, root mean square."""
        module = build(config)
        optimizer = make_optimizer(config, parameter_shapes(module))
        step = jax.jit(make_train_step(module, optimizer, config))
        state = jax.jit(initial_state(module, optimizer, config))(jax.random.key(0), {})
        seen = []
        for count in range(5):
            if count in (0, 4):
                seen.append(record(module, state.params, batch["inputs"], ["layers/residual/after"]))
            state, _ = step(state, batch)
        return tuple(
            float(jnp.sqrt(jnp.mean(jnp.square(seen[1][place] - seen[0][place]))))
            for place in ("layers/residual/after", "logits")
        )

    widths = (32, 128, 512)
    steady, growing = (np.log([moved(wide(width, base)) for width in widths]) for base in (widths[0], 0))
    steady, growing = ((logs[-1] - logs[0]) / math.log(widths[-1] / widths[0]) for logs in (steady, growing))
    assert np.all(np.abs(steady) < 0.2), steady
    assert np.all(growing > 0.4), growing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer.name": "muon"}, "--optimizer.name=muon: use --optimizer.name=adamw"),
        ({"model.attention": "delta"}, "--model.attention=delta"),
        ({"model.network": "lstm"}, "--model.network=lstm"),
        ({"model.scale_embeddings": True}, "--model.scale_embeddings"),
    ],
)
def test_what_has_no_rules_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check(override(wide(64, 16), settings))
