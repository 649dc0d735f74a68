"""A Slurm cluster of two nodes on this machine, for tests: a controller and two daemons. Needs root and munge."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "mungekey")
NODES = ("n1", "n2")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=2 RealMemory=2000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=low Nodes=n1,n2 Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=n1,n2 State=UP PriorityTier=10
"""


def why_not() -> str:
    """Why there can be no cluster here; empty if there can."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    return f"needs {', '.join(missing)}" if missing else "" if os.geteuid() == 0 else "needs root"


class Cluster:
    """Two nodes, named n1 and n2, and the partitions low, which high pre-empts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = f"{os.environ['PATH']}:/usr/sbin"
        ports = free_ports(3)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        host = socket.gethostname().partition(".")[0]
        values = {"host": host, "folder": folder, "port": ports[0], "port1": ports[1], "port2": ports[2]}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": self.path}
        self.hosts = Path("/etc/hosts").read_text()
        # JAX dials the first node by its name.
        Path("/etc/hosts").write_text(f"{self.hosts}\n127.0.0.1 {' '.join(NODES)}\n")
        self.start_munge()
        self.call("slurmctld")
        for node in NODES:
            (folder / f"spool.{node}").mkdir()
            self.start_node(node)

    def start_munge(self) -> None:
        """The service with which Slurm's programs know each other, with a key and a socket of its own."""
        munge = self.folder / "munge"
        munge.mkdir()
        self.call("mungekey", "--create", f"--keyfile={munge}/key")
        self.call(
            "munged", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={munge}/pid",
            f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip

    def start_node(self, node: str) -> None:
        """A node's daemon, for the first time or again."""
        self.call("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """A node's daemon is gone, without a word."""
        os.kill(int((self.folder / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)

    def wait_until_down(self, node: str, seconds: float = 120) -> None:
        """Until the controller has missed a node, which takes longer than SlurmdTimeout."""
        deadline = time.monotonic() + seconds
        while "down" not in self.call("sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%t"):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(1)

    def call(self, *command: str) -> str:
        """What a program answers."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr, self.logs())
        return done.stdout

    def logs(self) -> str:
        """The end of what the daemons say."""
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in self.folder.glob("*.log"))

    def close(self) -> None:
        """Ends all jobs, then all daemons, by their numbers."""
        self.call("scancel", "--user=root")
        deadline = time.monotonic() + 60
        while self.call("squeue", "--noheader") and time.monotonic() < deadline:
            time.sleep(0.5)
        Path("/etc/hosts").write_text(self.hosts)
        for pid in [*self.folder.glob("slurmd.*.pid"), self.folder / "slurmctld.pid", self.folder / "munge" / "pid"]:
            try:
                os.kill(int(pid.read_text()), signal.SIGTERM)
            except (OSError, ValueError):
                continue
        time.sleep(2)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    servers = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports
