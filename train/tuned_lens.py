"""The tuned lens: for each layer an affine map, trained so that the output layer reads there what it will say.

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens", section 3: the distribution
that the lens gives at a layer is brought close to the network's own, which stays as it is.

Shapes: L layers, B batch, T length, D model width.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.convert import override
from model.lens.logits import tuned_lens
from model.lens.record import record
from train.optimizer import make_optimizer

AFTER = "layers/residual/after"


def train_tuned_lens(
    module: Any, params: Any, batches: Iterable[jax.Array], *, steps: int, learning_rate: float = 1e-3
) -> tuple[Any, np.ndarray]:
    """Maps for `model.lens.logits.tuned_lens`, and the divergence of each layer before each step, [steps,L] in nats.

    The divergence is the mean KL(network || lens) over all tokens. Maps begin as the identity: the plain lens.

    Args:
      batches: int32 tokens [B,T] of text like that which is to be looked at; as many as `steps` are taken, or all.
      learning_rate: of AdamW without decay, which falls to a tenth.
    """
    settings = {
        "train.steps": steps, "optimizer.name": "adamw", "optimizer.learning_rate": learning_rate,
        "optimizer.warmup_steps": 0, "optimizer.weight_decay": 0.0, "optimizer.schedule": "cosine",
        "optimizer.ema_decay": 0.0, "model.lora_rank": 0,
    }  # fmt: skip
    L, D = module.config.model.num_layers, module.config.model.width
    maps = {"layers": {"translator": {"kernel": jnp.zeros((L, D, D)), "bias": jnp.zeros((L, D))}}}
    optimizer = make_optimizer(override(module.config, settings), maps)
    state, losses = optimizer.init(maps), []
    for _, tokens_BT in zip(range(steps), batches, strict=False):
        maps, state, loss_L = _step(module, optimizer, params, maps, state, tokens_BT)
        losses.append(loss_L)
    return maps, np.array(losses)


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    module: Any, optimizer: optax.GradientTransformation, params: Any, maps: Any, state: Any, tokens_BT: jax.Array
) -> tuple[Any, Any, jax.Array]:
    found = record(module, params, tokens_BT, (AFTER,))
    log_p_BTV = jax.nn.log_softmax(found["logits"].astype(jnp.float32))

    def divergence(maps: Any) -> tuple[jax.Array, jax.Array]:
        log_q_LBTV = jax.nn.log_softmax(tuned_lens(module, params, maps, found[AFTER]))
        kl_LBT = jnp.sum(jnp.exp(log_p_BTV)[None] * (log_p_BTV[None] - log_q_LBTV), axis=-1)
        loss_L = jnp.mean(kl_LBT, axis=(1, 2))
        return jnp.sum(loss_L), loss_L

    gradients, loss_L = jax.grad(divergence, has_aux=True)(maps)
    updates, state = optimizer.update(gradients, state, maps)
    return optax.apply_updates(maps, updates), state, loss_L
