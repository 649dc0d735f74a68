"""The flag that says in how many bits weights are kept while text is written."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from train.checkpoint import Restored

FLAGS = flags.FLAGS


def define() -> None:
    """Define the flag."""
    flags.DEFINE_string(
        "weights",
        "",
        "Keep the weights in bfloat16 or int8 (with a scale for each output): less memory, and faster where memory is "
        "what takes time; by default as the checkpoint has them.",
    )


def check() -> None:
    """Raises ConfigError for what is no way to keep them."""
    from configs.schema import ConfigError

    if FLAGS.weights not in ("", "bfloat16", "int8"):
        raise ConfigError(f"--weights={FLAGS.weights}: it must be bfloat16 or int8, or left out.")


def as_asked(restored: Restored) -> Restored:
    """The network with its weights as the flag says, in the form that is fast on this platform."""
    from model import build, packed

    return dataclasses.replace(restored, params=packed.pack(build(restored.config), restored.params, FLAGS.weights))
