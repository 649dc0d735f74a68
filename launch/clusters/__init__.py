"""Where a training program can be submitted to: this machine, Slurm, TPUs on Google's Kubernetes Engine, SkyPilot.

The restart rule of each is written from one contract. A training program ends with 0 when it is done, 75 when it has
saved and asks to be started again, 2 for bad flags, and with anything else when it has failed or was lost. So 0 and 2
end the run, 75 starts it again however often, and whatever else starts it again `--max_restarts` times.
"""

import difflib
from types import ModuleType

from configs.schema import ConfigError

NAMES = ("local", "slurm", "gke", "skypilot")


def named(name: str) -> ModuleType:
    """The module of a cluster, whose functions are those of `launch.clusters.local`.

    Raises:
      ConfigError: there is none of this name.
    """
    import importlib

    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        guess = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"--on={name}: there are {', '.join(NAMES)}.{guess}")
    return importlib.import_module(f"launch.clusters.{name}")
