"""What of a layer is kept from the forward pass for the backward pass, and what is computed again there.

Memory is bought with time (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). What can be kept gets a
name where it is computed, by `jax.ad_checkpoint.checkpoint_name`; `configs.derived.LAYER_RESULTS` has the names. A
layer's input is kept whatever the policy, since the rest is computed again from it.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from configs.derived import LAYER_RESULTS
from configs.schema import Config

LAYER_INPUT = "layer_input"
ATTENTION = "attention"  # What is read, and where a kernel's gradient needs it, the logarithm of each row's sum.
QKV = ("query", "key", "value")
KEPT: dict[str, tuple[str, ...]] = {
    "dots": LAYER_RESULTS,
    "minimal": tuple(name for name in LAYER_RESULTS if name != ATTENTION),
    "qkv": QKV,
    "full": (),
}


def rematerialized(layer: Any, config: Config) -> Any:
    """The module class `layer` with `model.remat` applied; parameters, results and gradients are the same."""
    if config.model.remat == "none":
        return layer
    # XLA would merge what is computed again with what it repeats; in a loop it cannot.
    return nn.remat(layer, policy=policy(config.model.remat), prevent_cse=config.model.layers == "unroll")


def policy(remat: str, *more: str) -> Any:
    """The policy of `jax.checkpoint` that a value of `model.remat` means, `none` excepted; `more` is kept as well."""
    policies = jax.checkpoint_policies
    if remat == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=[LAYER_INPUT, *QKV],
            offload_src="device", offload_dst="pinned_host",
        )  # fmt: skip
    by_name = policies.save_only_these_names(*KEPT.get(remat, remat.split(",")), *more)
    if remat == "dots":  # Experts' products have a batch axis, and those in a kernel are out of sight: they go by name.
        return policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, by_name)
    return by_name
