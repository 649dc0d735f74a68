"""Starting from a network that exists (`--init_from`) instead of from random numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from configs.derived import max_length
from configs.schema import Config, ConfigError, Tokenizer
from model import build
from model.lora import LORA, merged
from model.sharding import parameter_shapes
from train.checkpoint import described, restore_params

# What an encoder that filled in masked words brings along where it becomes the encoder of a translator.
OF_AN_ENCODER = ("layers/", "final_norm/", "relative/", "position/")
# How a network is computed and trained, which a checkpoint does not settle.
OF_THE_RUN = (
    "dropout", "dtype", "param_dtype", "matmul", "layers", "remat", "kernel", "lora_rank", "lora_alpha", "lora_targets",
)  # fmt: skip


def adopt(config: Config, init_from: str) -> Config:
    """`config` for a run that starts from the checkpoint `init_from`: with its network and its tokenizer.

    A translator stays one where the checkpoint is an encoder, with layers of the encoder's shape.

    Raises:
      ConfigError: the config asks for a network of another kind, such as an encoder, from a decoder's weights.
      CheckpointError: there is no such checkpoint.
    """
    origin, _ = described(init_from)
    kept = {name: getattr(config.model, name) for name in OF_THE_RUN}
    if _becomes_encoder(origin, config):
        kept["network"] = config.model.network
    elif config.model.network not in ("decoder", origin.model.network):
        raise ConfigError(
            f"--config={config.name} is a network of the kind {config.model.network}, but --init_from={init_from} has "
            f"the weights of one of the kind {origin.model.network}: leave out one of the two."
        )
    if origin.model.position == "learned":
        kept["max_length"] = max_length(origin)
    model = dataclasses.replace(origin.model, **kept)
    vocabulary = Tokenizer(source="checkpoint", vocab_size=origin.tokenizer.vocab_size)
    return dataclasses.replace(config, init_from=init_from, model=model, tokenizer=vocabulary)


def _becomes_encoder(origin: Config, config: Config) -> bool:
    return origin.model.network == "encoder" and config.model.network == "encoder_decoder"


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
    needed = wanted
    if _becomes_encoder(origin, config):
        given = {
            f"encoder/{path}" if path.startswith(OF_AN_ENCODER) else path: value
            for path, value in given.items()
            if path.startswith((*OF_AN_ENCODER, "embedding/"))
        }
        needed = [path for path in wanted if path.startswith(("encoder/", "embedding/"))]
    needed = [path for path in needed if path.rpartition("/")[2] not in LORA]
    for path in sorted({*needed, *given}):
        here = f"has the shape {wanted[path].shape}" if path in wanted else "does not exist"
        there = f"the shape {given[path].shape}" if path in given else "none"
        if here.removeprefix("has ") != there:
            raise ConfigError(
                f"--init_from={config.init_from} is not of this network: {path} {here} here, the checkpoint has "
                f"{there}. Leave out the --model flags that differ."
            )
    return {path: value.astype(wanted[path].dtype) for path, value in given.items()}
