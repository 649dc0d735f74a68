"""A JobSet on this machine: every pod's own command and environment as processes, and the restart rules as written.

What Kubernetes and GKE would add is added: the pod's index in its Job, its labels, names that lead to pods, devices.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from slurm_cluster import free_ports

ROOT = Path(__file__).parents[1]
SHORT = 10.0  # Seconds that a pod gets to save in.


class Pod:
    """One process, as the manifest describes it."""

    def __init__(self, jobset: dict[str, Any], slot: int, index: int, log: Path, added: dict[str, str]) -> None:
        self.slot, self.index = slot, index
        self.job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
        (container,) = self.job["template"]["spec"]["containers"]
        labels = {
            "jobset.sigs.k8s.io/job-index": str(slot),
            "jobset.sigs.k8s.io/jobset-name": jobset["metadata"]["name"],
        }
        variables = {"JOB_COMPLETION_INDEX": str(index), "HOSTNAME": socket.gethostname()}
        for each in container["env"]:
            if "value" in each:
                variables[each["name"]] = each["value"]
            else:
                path = re.fullmatch(r"metadata\.labels\['(.+)'\]", each["valueFrom"]["fieldRef"]["fieldPath"])
                assert path, each
                variables[each["name"]] = labels[path[1]]
        variables |= {name: value for name, value in added.items() if name not in ("mount", "first", "port")}
        # The cluster's DNS, and its volumes.
        name, port = variables["JAX_COORDINATOR_ADDRESS"].split(":")
        assert name == added["first"]
        variables["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{added['port']}"
        (mount,) = container["volumeMounts"]
        words = [word.replace(f"{mount['mountPath']}/", f"{added['mount']}/") for word in container["args"]]
        with log.open("a") as output:
            self.process = subprocess.Popen(
                [*container["command"], *words],
                env=variables,
                cwd=Path(__file__).parents[1],
                stdout=output,
                stderr=output,
            )
        assert port == str(container["ports"][0]["containerPort"])

    def failure(self) -> tuple[str, str]:
        """Reason and message with which its Job fails, by the first rule of its pod failure policy that holds."""
        status = self.process.returncode if self.process.returncode >= 0 else 128 - self.process.returncode
        for number, rule in enumerate(self.job["podFailurePolicy"]["rules"]):
            if status in rule.get("onExitCodes", {}).get("values", []):
                assert rule["action"] == "FailJob"
                which = f"exit code {status} matching FailJob rule at index {number}"
                return "PodFailurePolicy", f"Container train for pod default/pod failed with {which}"
        assert self.job["backoffLimit"] == 0
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


class Controller:
    """Starts all pods, again where the failure policy says so."""

    def __init__(self, jobset: dict[str, Any], folder: Path, environment: dict[str, str]) -> None:
        self.jobset, self.folder, self.environment = jobset, folder, environment
        self.pods: list[Pod] = []
        self.restarts = self.counted = 0
        self.failures: list[str] = []

    def start(self) -> None:
        """Creates the Jobs and their pods."""
        name, spec = self.jobset["metadata"]["name"], self.jobset["spec"]
        (part,) = spec["replicatedJobs"]
        first = f"{name}-{part['name']}-0-0.{spec['network']['subdomain']}"
        chips = int(
            part["template"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"]
        )
        added = {
            **self.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(self.folder),
            "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{self.environment['XLA_FLAGS']} "
            f"--xla_force_host_platform_device_count={chips}", "mount": str(self.folder), "first": first,
            "port": str(free_ports(1)[0]),
        }  # fmt: skip
        places = itertools.product(range(part["replicas"]), range(part["template"]["spec"]["completions"]))
        self.pods = [
            Pod(self.jobset, slot, index, self.folder / f"{slot}-{index}.log", added) for slot, index in places
        ]

    def step(self) -> str:
        """Looks once: running, Completed or Failed; where a Job has failed, does what the policy says."""
        ended = [pod for pod in self.pods if pod.process.poll() is not None]
        failed = [pod for pod in ended if pod.process.returncode]
        if not failed:
            return "Completed" if len(ended) == len(self.pods) else "running"
        reason, message = failed[0].failure()
        self.failures.append(message if reason == "PodFailurePolicy" else reason)
        policy = self.jobset["spec"]["failurePolicy"]
        action = next(
            (rule["action"] for rule in policy["rules"] if self.holds(rule, reason, message)), "RestartJobSet"
        )
        self.stop()
        if action == "FailJobSet":
            return "Failed"
        if action == "RestartJobSet":
            self.counted += 1
            if self.counted > policy["maxRestarts"]:
                return "Failed"
        self.restarts += 1
        self.start()
        return "running"

    @staticmethod
    def holds(rule: dict[str, Any], reason: str, message: str) -> bool:
        """Whether a rule of the failure policy is about this failure."""
        patterns = rule.get("onJobFailureMessagePatterns", [])
        of_message = not patterns or any(re.search(pattern, message) for pattern in patterns)
        return of_message and reason in rule.get("onJobFailureReasons", [reason])

    def stop(self) -> None:
        """Deletes all pods: asked to stop, then killed."""
        for number, seconds in ((signal.SIGTERM, SHORT), (signal.SIGKILL, SHORT)):
            for pod in self.pods:
                if pod.process.poll() is None:
                    pod.process.send_signal(number)
            deadline = time.monotonic() + seconds
            while any(pod.process.poll() is None for pod in self.pods) and time.monotonic() < deadline:
                time.sleep(0.1)

    def run(self, seconds: float) -> str:
        """Until the JobSet has ended."""
        deadline = time.monotonic() + seconds
        while (state := self.step()) == "running":
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)
        return state

    def logs(self) -> str:
        """The end of what each pod said."""
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))
