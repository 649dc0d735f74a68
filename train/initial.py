"""Starting from a network that exists (`--init_from`) instead of from random numbers."""

from __future__ import annotations

from typing import Any

import jax
from flax.traverse_util import flatten_dict

from configs.schema import Config, ConfigError
from model import build
from model.lora import LORA, merged
from model.sharding import parameter_shapes
from train.checkpoint import restore_params

# What an encoder that filled in masked words brings along where it becomes the encoder of a translator.
OF_AN_ENCODER = ("layers/", "final_norm/", "relative/", "position/")


def initial_params(config: Config, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """The parameters of `config.init_from` on `mesh`, by their path in the network of `config`.

    All but what LoRA adds must be there; an encoder gives an encoder-decoder its encoder and its embedding only.

    Raises:
      ConfigError: the checkpoint is that of another network; names the first parameter that does not fit.
      CheckpointError: it cannot be read.
    """
    restored = restore_params(config.init_from, mesh)
    origin, params = merged(restored.config, restored.params)
    given: dict[str, Any] = flatten_dict(params, sep="/")
    wanted: dict[str, Any] = flatten_dict(parameter_shapes(build(config)), sep="/")
    needed = [path for path in wanted if path.rpartition("/")[2] not in LORA]
    if origin.model.network == "encoder" and config.model.network == "encoder_decoder":
        given = {
            f"encoder/{path}" if path.startswith(OF_AN_ENCODER) else path: value
            for path, value in given.items()
            if path.startswith((*OF_AN_ENCODER, "embedding/"))
        }
        needed = [path for path in wanted if path.startswith(("encoder/", "embedding/"))]
    for path in sorted({*needed, *given}):
        here = f"has the shape {wanted[path].shape}" if path in wanted else "does not exist"
        there = f"the shape {given[path].shape}" if path in given else "none"
        if here.removeprefix("has ") != there:
            raise ConfigError(
                f"--init_from={config.init_from} is not of this network: {path} {here} here, the checkpoint has "
                f"{there}. Leave out the --model flags that differ."
            )
    return {path: value.astype(wanted[path].dtype) for path, value in given.items()}
