"""Several processes, on one machine or many, are one run: they find each other, and they end together.

A cluster says by itself how many there are (a TPU pod, Slurm, Open MPI), or three flags or environment variables do.
Process 0 is the coordinator: the others connect to it (launch/control.py), and JAX's own service runs there.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
import warnings
from dataclasses import dataclass

from absl import flags

from configs.schema import ConfigError
from launch.control import Control, ProcessError, relay
from train.stop import RESTART

FLAGS = flags.FLAGS
# Flags, and the environment variables that say the same where none of the flags is given.
BY_HAND = {
    "coordinator": "JAX_COORDINATOR_ADDRESS", "num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID",
}  # fmt: skip
_joined: Control | None = None


@dataclass(frozen=True)
class Place:
    """Which process of how many this is, and where process 0 listens."""

    host: str
    port: int
    count: int
    process: int
    devices: list[int] | None = None  # Of this machine, those that are for this process; None is all.


def define() -> None:
    """The flags that say which process of how many this is."""
    flags.DEFINE_enum(
        "distributed", "auto", ["auto", "on", "off"],
        "Several processes: auto asks the environment or the cluster (a TPU pod, Slurm, Open MPI); on insists on more "
        "than one; off is a process by itself.",
    )  # fmt: skip
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, which all others can reach; where no cluster says.")
    flags.DEFINE_integer("num_processes", 0, "How many processes there are; where no cluster says.")
    flags.DEFINE_integer("process_id", -1, "The number of this process, from 0; where no cluster says.")
    flags.DEFINE_float("start_timeout", 60.0, "Seconds that the processes wait for each other at the start.")
    flags.DEFINE_float("lost_timeout", 40.0, "Seconds of silence after which a process counts as lost.")


def join() -> None:
    """Becomes one of several processes, if the flags or the cluster say so; before any device is used.

    From then on, the death of one process ends all.

    Raises:
      ConfigError: flags that are missing or contradict each other.
      ProcessError: the others are not there.
    """
    global _joined
    if _joined is None and (place := find_place()) is not None:
        _joined = join_as(place, FLAGS.start_timeout, FLAGS.lost_timeout)


def find_place() -> Place | None:
    """Which process this is by the flags or by the cluster; None if it is alone.

    Raises:
      ConfigError: flags that are missing or contradict each other.
    """
    said = {f"--{name}": str(FLAGS[name].value) for name in BY_HAND if FLAGS[name].value != FLAGS[name].default}
    if FLAGS.distributed == "off":
        if said:
            flag, value = next(iter(said.items()))
            raise ConfigError(f"--distributed=off contradicts {flag}={value}: leave out one.")
        return None
    if said:
        return _by_hand(said, [f"--{name}" for name in BY_HAND])
    if said := {name: os.environ[name] for name in BY_HAND.values() if os.environ.get(name)}:
        return _by_hand(said, [*BY_HAND.values()])
    found = _of_cluster()
    if found is None and FLAGS.distributed == "on":
        raise ConfigError(
            "--distributed=on, but no cluster (TPU pod, Slurm, Open MPI) says that there are several processes: give "
            "--coordinator=HOST:PORT, --num_processes and --process_id."
        )
    return found


def _by_hand(said: dict[str, str], names: list[str]) -> Place | None:
    """The place that three flags or variables say; `names` are those of the coordinator, the count and the number."""
    first = next(iter(said))
    if missing := [name for name in names if name not in said]:
        raise ConfigError(f"{first}={said[first]} needs {' and '.join(missing)} as well.")
    (at, address), (of, count), (which, process) = ((name, said[name]) for name in names)
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65_536):
        raise ConfigError(f"{at}={address} is not HOST:PORT, such as 10.0.0.1:8476.")
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"{of}={count}: a number is needed, at least 1.")
    if not process.isdecimal() or int(process) >= int(count):
        raise ConfigError(f"{which}={process} is none of the {of}={count}: 0 to {int(count) - 1}.")
    return Place(host, int(port), int(count), int(process)) if int(count) > 1 else None


def _of_cluster() -> Place | None:
    """What the cluster that JAX recognises says, if that is more than one process.

    Raises:
      ProcessError: it says less than is needed.
    """
    from jax._src import clusters  # JAX has no public name for it.

    try:
        with warnings.catch_warnings(action="ignore"):  # Of a cluster that lacks a package to be asked.
            kinds = (kind for kind in clusters.ClusterEnv._cluster_types if not kind.opt_in_only_method)
            cluster = next((kind for kind in kinds if kind.is_env_present()), None)
        if cluster is None or (count := cluster.get_process_count()) < 2:
            return None
        port = os.environ.get("JAX_COORDINATOR_PORT")
        address = cluster.get_coordinator_address(timeout_secs=FLAGS.start_timeout, override_coordinator_port=port)
        process, local = cluster.get_process_id(), cluster.get_local_process_id()
    except Exception as error:  # Each kind of cluster has classes of its own for it.
        raise ProcessError(
            f"The cluster does not say which process of how many this is: {error}. Give --coordinator=HOST:PORT, "
            "--num_processes and --process_id, or --distributed=off for a process by itself."
        ) from error
    host, _, number = address.rpartition(":")
    return Place(host, int(number), count, process, _devices(local))


def _devices(local_process: int | None) -> list[int] | None:
    """Processes that share a machine take a device each; one that has it to itself takes all."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or ""
    return None if local_process is None or re.match(r"1\b", tasks) else [local_process]


def join_as(place: Place, start_timeout: float, lost_timeout: float) -> Control:
    """Finds the other processes, watches them from now on, and starts JAX among them.

    Raises:
      ProcessError: the others are not there.
    """
    import jax

    control = Control(place.process, place.count, lost_timeout, lambda what, status: _end(place, what, status))
    port = int(control.gather(place.host, place.port, start_timeout, _free_port))
    # JAX's own watch counts seconds: a machine that stands still for a while, and all processes with it, is not dead.
    patience = round(lost_timeout) + 600
    # SIGTERM is answered by the loop, not by JAX, which would put its own handler in place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    if place.process:
        port, address = relay(place.host, port), "127.0.0.1"
    else:
        address = "localhost"
    jax.distributed.initialize(
        f"{address}:{port}", place.count, place.process, place.devices,
        cluster_detection_method="deactivate", initialization_timeout=round(start_timeout) + 60,
        heartbeat_timeout_seconds=patience,
    )  # fmt: skip
    return control


def _free_port() -> str:
    with socket.create_server(("", 0)) as server:
        return str(server.getsockname()[1])


def _end(place: Place, what: str, status: int) -> None:
    """Another process is gone: says so and ends this one, wherever its main thread is waiting."""
    print(
        f"\nProcess {place.process} ends: {what}. The same commands go on from the newest checkpoint.",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


def farewell(why: str) -> None:
    """Tells the others, if there are any, that this process ends and asks to be started again; they do the same."""
    if _joined is not None:
        _joined.fail(why, RESTART)


def leave(status: int, why: str) -> None:
    """The end of a program: with the others, or if it failed at once, telling them why.

    Args:
      status: with which the process ends.
      why: one sentence, if it failed.
    """
    if _joined is None:
        return
    if status in (0, RESTART):
        import jax

        _joined.leave()
        jax.distributed.shutdown()
        return
    _joined.fail(why)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # Python would wait for JAX, and JAX for the other processes.


def await_verdict(error: BaseException) -> None:
    """If a computation failed because another process is gone: waits for the watch, which says so and ends this one."""
    if _joined is not None and _is_of_communication(error):
        time.sleep(FLAGS.lost_timeout + 5)


def _is_of_communication(error: BaseException) -> bool:
    return re.search("Gloo|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|[Cc]onnection", str(error)) is not None
