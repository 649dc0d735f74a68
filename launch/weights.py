"""The flags that say how weights are kept while text is written: in how many bits, and shared by which devices."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from absl import flags

from configs.flags import define_mesh, resolve_mesh

if TYPE_CHECKING:
    import jax

    from train.checkpoint import Restored

FLAGS = flags.FLAGS


def define() -> None:
    """Define the flags."""
    flags.DEFINE_string(
        "weights",
        "",
        "Keep the weights in bfloat16 or int8 (with a scale for each output): less memory, and faster where memory is "
        "what takes time; by default as the checkpoint has them.",
    )
    define_mesh()


def check() -> None:
    """Raises ConfigError for what is no way to keep them."""
    from configs.schema import ConfigError

    if FLAGS.weights not in ("", "bfloat16", "int8"):
        raise ConfigError(f"--weights={FLAGS.weights}: it must be bfloat16 or int8, or left out.")


def restore(spec: str) -> Restored:
    """The network that `spec` names, on the devices of the mesh that the flags name.

    Raises:
      CheckpointError: there is no such checkpoint.
      ConfigError: the devices cannot share it so.
    """
    from model.sharding import check_writes
    from train.checkpoint import described, restore_params

    if mesh := mesh_asked():
        check_writes(described(spec)[0], mesh)  # Before the weights are read, which may take long.
    return restore_params(spec, mesh)


def as_asked(restored: Restored) -> Restored:
    """The network with its weights as the flag says, in the form that is fast on this platform."""
    from model import build, packed

    return dataclasses.replace(restored, params=packed.pack(build(restored.config), restored.params, FLAGS.weights))


def shared() -> AbstractContextManager[None]:
    """Within it, what is computed is spread over the mesh of the flags, if they name one."""
    import jax

    return jax.set_mesh(mesh) if (mesh := mesh_asked()) else nullcontext()


def mesh_asked() -> jax.sharding.Mesh | None:
    """The mesh of the flags, if they name one. Raises ConfigError for one that these devices cannot make."""
    import jax

    from model.sharding import make_mesh

    return make_mesh(asked, jax.local_devices()) if (asked := resolve_mesh()) else None
