"""Each kind of attention and of feed-forward layer learns, whatever its parameters are called and shaped like."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny

from configs.check import check
from configs.convert import override
from model import build
from model.sharding import batch_sharding, make_mesh, parameter_shapes
from train.optimizer import decay_mask, make_optimizer, parameter
from train.step import init_state, make_train_step

STATE = {"position": "none", "num_kv_heads": 0}


@pytest.mark.parametrize(
    ("settings", "optimizer"),
    [
        ({"num_experts": 4, "expert_capacity": 2.0}, "muon"),
        ({"num_experts": 4}, "adafactor"),
        ({"attention": "latent", "num_kv_heads": 0, "query_latent_width": 8}, "muon"),
        ({"attention": "linear", **STATE}, "adamw"),
        ({"attention": "delta", **STATE}, "muon"),
    ],
)
def test_a_few_steps_lower_the_loss(settings, optimizer):
    config = override(
        tiny(num_layers=1, **settings),
        {
            "optimizer.name": optimizer,
            "optimizer.learning_rate": 0.01,
            "optimizer.warmup_steps": 0,
            "train.steps": 1000,
        },
    )
    module, mesh = build(check(config)), make_mesh(config.mesh, jax.devices()[:1])
    transformation = make_optimizer(config, parameter_shapes(module))
    state = init_state(module, transformation, config, mesh)
    tokens_BT = (np.arange(13) * np.arange(1, 5)[:, None] % 32).astype(np.int32)
    positions_BT = np.broadcast_to(np.arange(12, dtype=np.int32), (4, 12))
    batch = {"inputs": tokens_BT[:, :-1], "targets": tokens_BT[:, 1:], "positions": positions_BT}
    batch["segments"] = (positions_BT < np.array([[12], [12], [9], [4]])).astype(np.int32)
    step, losses = jax.jit(make_train_step(module, transformation, config)), []
    with jax.set_mesh(mesh):
        for _ in range(8):
            state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
            losses.append(float(metrics["train/loss"]))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.2


def test_optimizers_take_each_layer_s_each_expert_for_a_matrix_of_its_own():
    path = tuple(jax.tree_util.DictKey(name) for name in ("layers", "feed_forward", "experts", "up", "kernel"))
    this = parameter(path, 4)
    assert (this.layer_axes, this.input_axes, this.output_axes) == (2, 1, 1)
    config = override(tiny(num_experts=4), {"optimizer.name": "muon", "optimizer.clip_norm": 0.0})
    params = random_params(build(config))
    transformation = make_optimizer(config, params)
    gradient = jax.tree.map(jnp.ones_like, params)
    gradient["layers"]["feed_forward"]["experts"]["up"]["kernel"] = params["layers"]["feed_forward"]["experts"]["up"][
        "kernel"
    ]
    updates, _ = jax.jit(transformation.update)(
        gradient, transformation.init(params), jax.tree.map(jnp.zeros_like, params)
    )
    update_LEDF = np.asarray(updates["layers"]["feed_forward"]["experts"]["up"]["kernel"])
    singular = np.linalg.svd(update_LEDF, compute_uv=False)
    assert singular.min() > 0.5 * singular.max()  # All directions of each expert's matrix move alike.


def test_what_sets_how_fast_a_state_fades_is_not_decayed():
    mask = decay_mask(parameter_shapes(build(tiny(attention="delta", **STATE))))["layers"]["attention"]
    assert mask["decay"] == {"kernel": True, "bias": False, "rate": False}
    assert mask["convolution"] == {"taps": False}
