"""TPUs on Google Kubernetes Engine: one JobSet, one Job per slice, one pod per host; submitted with kubectl.

JobSet (v0.10 or later) starts all slices together and again when one is lost; Kueue queues them. Which process a pod is
follows from the index of its Job among the slices and of the pod within its Job.

Sources: https://jobset.sigs.k8s.io/docs/, https://kubernetes.io/docs/concepts/workloads/controllers/job/ (pod failure
policy), https://docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus and .../how-to/tpu-multislice.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.schema import Config, ConfigError
from launch.clusters.fitting import check_tpus, hosts, slice_of_tpus
from launch.clusters.job import Job, Request, State, ask, has_ended

READS = ("topology", "slices", "queue", "namespace", "image", "service_account", "storage", "spot")
FILE = "jobset.yaml"
ACCELERATORS = {
    "v4": "tpu-v4-podslice", "v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}  # fmt: skip
PORT = 8476
START_TIMEOUT = 1800  # Seconds: a slice's machines may be made only now, and each pulls the image.
MOUNT = "/runs"
BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(?:/(.*?))?/?")
CLAIM = re.compile(r"pvc:([a-z0-9]([a-z0-9.-]*[a-z0-9])?)")


def run_folder(request: Request, asked: str) -> str:
    """Where the run is, as the pods see it: in the mounted storage, under its own name."""
    return f"{MOUNT}/{request.name}"


def check(job: Job, config: Config) -> None:
    """Refuses what would not run.

    Raises:
      ConfigError: there is no such slice, the mesh does not fit on it, or storage or image are missing.
    """
    asked = job.request
    topology = slice_of_tpus(asked.topology, asked.slices)
    check_tpus(config, topology)
    if asked.slices > 1 and hosts(topology) == 1:
        raise ConfigError(
            f"--slices={asked.slices}: slices of one host, as {topology.name}, are not joined by the network; take "
            "larger ones."
        )
    if not asked.image:
        raise ConfigError("--image is missing: build and push one with launch/clusters/Dockerfile (docs/launching.md).")
    if not (BUCKET.fullmatch(asked.storage) or CLAIM.fullmatch(asked.storage)):
        raise ConfigError(
            f"--storage={asked.storage}: where checkpoints go, which all pods can write to: gs://BUCKET, "
            "gs://BUCKET/FOLDER or pvc:CLAIM."
        )


def render(job: Job) -> str:
    """The manifest."""
    import yaml

    plain = json.loads(json.dumps(manifest(job)))  # YAML would write what is there twice as a reference.
    return yaml.safe_dump(plain, sort_keys=False, width=120)


def manifest(job: Job) -> dict[str, Any]:
    """The JobSet."""
    asked = job.request
    topology = slice_of_tpus(asked.topology, asked.slices)
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": asked.namespace,
            "labels": {"kueue.x-k8s.io/queue-name": asked.queue},
            # A slice is a node pool: no two Jobs share one, and no Job is spread over two.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": job.name},
            "failurePolicy": failure_policy(asked),
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": asked.slices,
                    "template": {
                        "spec": {
                            "completionMode": "Indexed",
                            "completions": hosts(topology),
                            "parallelism": hosts(topology),
                            "backoffLimit": 0,
                            "podFailurePolicy": {"rules": pod_failure_rules()},
                            "template": pod(job),
                        }
                    },
                }
            ],
        },
    }


def pod_failure_rules() -> list[dict[str, Any]]:
    """By which a Job ends at the first pod that fails; JobSet reads in the reason which rule it was."""

    def ended_with(status: int) -> dict[str, Any]:
        return {"containerName": "train", "operator": "In", "values": [status]}

    return [
        {"action": "FailJob", "onExitCodes": ended_with(2)},
        {"action": "FailJob", "onExitCodes": ended_with(75)},
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def failure_policy(asked: Request) -> dict[str, Any]:
    """When all slices start again: after bad flags never, when they have saved or were evicted however often.

    Whatever else fails a pod, such as exit status 1 or a kill, starts them again as often as --max_restarts says.
    """
    reason = {"onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "maxRestarts": asked.max_restarts,
        "rules": [
            {
                "name": "badFlags",
                "action": "FailJobSet",
                **reason,
                "onJobFailureMessagePatterns": [".*matching FailJob rule at index 0.*"],
            },
            {"name": "savedOrEvicted", "action": "RestartJobSetAndIgnoreMaxRestarts", **reason},
        ],
    }


def pod(job: Job) -> dict[str, Any]:
    """The pod of each host."""
    asked = job.request
    topology = slice_of_tpus(asked.topology, asked.slices)
    per_slice = hosts(topology)
    first = f"{job.name}-slice-0-0.{job.name}"  # The name that JobSet gives to the first pod.
    variables = {
        "JAX_PLATFORMS": "tpu,cpu",  # Without its TPUs it must not begin to train on the CPU.
        "JAX_COORDINATOR_ADDRESS": f"{first}:{PORT}",
        "JAX_NUM_PROCESSES": str(per_slice * asked.slices),
    }
    waits = [] if any("start_timeout" in word for word in job.arguments) else [f"--start_timeout={START_TIMEOUT}"]
    command = shlex.join(["python", "-m", job.program, *waits, *job.arguments])
    annotations, volume = storage(asked.storage)
    slot = {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}
    selector = {
        "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[topology.chip.name],
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, topology.shape)),
    }
    tpus = {"google.com/tpu": str(topology.chips // topology.slices // per_slice)}
    return {
        **({"metadata": {"annotations": annotations}} if annotations else {}),
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": asked.service_account,
            "terminationGracePeriodSeconds": asked.grace,
            "nodeSelector": {**selector, **({"cloud.google.com/gke-spot": "true"} if asked.spot else {})},
            "containers": [
                {
                    "name": "train",
                    "image": asked.image,
                    # Kubernetes counts pods within a Job; `exec`, for SIGTERM to reach the training.
                    "command": ["/bin/sh", "-c"],
                    "args": [f"export JAX_PROCESS_ID=$((SLICE * {per_slice} + JOB_COMPLETION_INDEX)); exec {command}"],
                    "env": [
                        {"name": "SLICE", "valueFrom": {"fieldRef": slot}},
                        *({"name": name, "value": value} for name, value in variables.items()),
                    ],
                    "ports": [{"containerPort": PORT, "protocol": "TCP"}],
                    "resources": {"requests": tpus, "limits": tpus},
                    "volumeMounts": [{"name": "runs", "mountPath": MOUNT}],
                }
            ],
            "volumes": [{"name": "runs", **volume}],
        },
    }


def storage(where: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Annotations of the pod and the volume for --storage."""
    if claim := CLAIM.fullmatch(where):
        return {}, {"persistentVolumeClaim": {"claimName": claim[1]}}
    bucket = BUCKET.fullmatch(where)
    assert bucket, where
    options = ["implicit-dirs", *([f"only-dir:{bucket[2]}"] if bucket[2] else [])]
    attributes = {"bucketName": bucket[1], "mountOptions": ",".join(options)}
    volume = {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
    return {"gke-gcsfuse/volumes": "true"}, volume


def submit(job: Job, file: Path) -> str:
    """Creates the JobSet; returns its name. One of the same name that has ended makes room.

    Raises:
      ConfigError: one of the same name is running, whoever submitted it.
    """
    before = state(job, job.name)
    if not before.ended:
        raise ConfigError(
            f"There is a JobSet {job.name} in {job.request.namespace}, which is {before.what}: give another --name."
        )
    if before.what != "unknown":
        ask("kubectl", "delete", "jobset", job.name, f"--namespace={job.request.namespace}")
    ask("kubectl", "create", f"--filename={file}")
    return job.name


def state(job: Job, identity: str) -> State:
    """How the run is doing, by the conditions of its JobSet."""
    command = ("kubectl", "get", "jobset", identity, f"--namespace={job.request.namespace}", "--output=json")
    try:
        found = json.loads(ask(*command))
    except ConfigError as error:
        if "NotFound" in str(error):
            return State("unknown", "there is no such JobSet (any more)")
        raise
    status = found.get("status", {})
    holds = {each["type"]: each.get("message", "") for each in status.get("conditions", []) if each["status"] == "True"}
    detail = f"restarts {status.get('restarts', 0)}"
    for condition, what in (("Completed", "done"), ("Failed", "failed"), ("Suspended", "waiting")):
        if condition in holds:
            return State(what, f"{detail}, {holds[condition]}")
    return State("running", detail)


def follow(job: Job, identity: str) -> Iterator[str]:
    """What process 0 says, in one pod after the other."""
    selector = f"jobset.sigs.k8s.io/jobset-name={identity},jobset.sigs.k8s.io/job-index=0"
    selector += ",batch.kubernetes.io/job-completion-index=0"
    command = ["kubectl", "logs", f"--namespace={job.request.namespace}", f"--selector={selector}", "--container=train",
               "--follow", "--tail=-1"]  # fmt: skip
    while not has_ended(lambda: state(job, identity)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as logs:
            assert logs.stdout
            yield from logs.stdout
        time.sleep(10)


def cancel(job: Job, identity: str) -> str:
    """Deletes the JobSet: its pods are asked to stop, and have the grace period to save in."""
    ask("kubectl", "delete", "jobset", identity, f"--namespace={job.request.namespace}", "--wait=false")
    return "It saves and ends."
