"""What is submitted, checked as strictly as a cluster would; nothing is submitted here."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from configs.convert import override
from configs.presets import preset
from configs.schema import ConfigError
from launch import clusters, submit
from launch.clusters import gke, local, slurm
from launch.clusters import job as jobs
from launch.clusters.job import Job, Request

GOLDEN = Path(__file__).parent / "golden"
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "v5e.yaml": ("gke", {"topology": "v5e:4x4", "storage": "gs://bucket", "spot": True, "grace": 25}),
    "v5e-one-host.yaml": ("gke", {"topology": "v5e:2x2", "storage": "pvc:runs"}),
    "v5p-two-slices.yaml": ("gke", {"topology": "v5p:4x4x4", "slices": 2, "storage": "gs://bucket/some/runs"}),
    "v6e-four-slices.yaml": ("gke", {"topology": "v6e-256", "slices": 4, "storage": "gs://bucket", "queue": "team"}),
    "tpu7x.yaml": ("gke", {"topology": "tpu7x:2x2x2", "storage": "gs://bucket", "max_restarts": 3}),
    "gpus.sh": ("slurm", {"nodes": 4, "gpus": 8, "partition": "h100", "time": "2-00:00:00", "account": "team"}),
    "cpus.sh": ("slurm", {"nodes": 2}),
    "tpu-vm.yaml": ("skypilot", {"accelerators": "tpu-v6e-8", "storage": "gs://bucket", "spot": True}),
    "gpu-nodes.yaml": ("skypilot", {"accelerators": "H100:8", "nodes": 2, "storage": "s3://bucket"}),
}
MANIFESTS = [name for name, (on, _) in ASKED.items() if on == "gke"]


def job_of(on: str, asked: dict[str, Any], *flags: str) -> Job:
    request = Request(**({"name": "try", **asked} | ({"image": "registry/seq2see:1"} if on == "gke" else {})))
    folder = clusters.named(on).run_folder(request, "/shared/runs/try")
    return Job(on, request, (*flags, f"--run={folder}"), "/shared/work")


def rendered(name: str) -> str:
    on, asked = ASKED[name]
    return clusters.named(on).render(
        job_of(on, asked, "--config=llama3_8b", "--mesh.data=-1", "--data.source=text:a b/*")
    )


@pytest.mark.parametrize("name", ASKED)
def test_what_is_submitted_is_as_it_was(name, monkeypatch):
    """After a change that is meant: UPDATE_GOLDEN=1."""
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    for module in ("slurm", "skypilot"):
        monkeypatch.setattr(clusters.named(module), "ROOT", Path("/seq2see"))
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(rendered(name), encoding="utf-8")
    assert rendered(name) == (GOLDEN / name).read_text("utf-8")


def errors(manifest: dict[str, Any]) -> str:
    """What a strict reader says: of each Job by its schema, of the whole by the fields that JobSet knows."""
    try:
        for part in manifest["spec"]["replicatedJobs"]:
            job = {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": manifest["metadata"] | part["template"].get("metadata", {}),
                "spec": part["template"]["spec"],
            }
            kubernetes_validate.validate(job, "1.34", strict=True)
        known = JobsetV1alpha2JobSet.from_dict(manifest)
    except (kubernetes_validate.ValidationError, ValueError) as error:
        return str(error)
    # What JobSet does not know is left out of it.
    return "" if known and known.to_dict() == manifest else "not what JobSet reads"


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_hold_to_the_schemas_of_kubernetes_and_jobset(name):
    assert errors(yaml.safe_load((GOLDEN / name).read_text("utf-8"))) == ""


@pytest.mark.parametrize("name", [name for name, (on, _) in ASKED.items() if on == "skypilot"])
def test_tasks_are_read_by_skypilot(name):
    """Where it is installed."""
    sky = pytest.importorskip("sky")
    asked = ASKED[name][1]
    task = sky.Task.from_yaml_config(clusters.named("skypilot").task(job_of("skypilot", asked)))
    assert task.num_nodes == asked.get("nodes", 1)
    (resources,) = task.resources
    assert resources.job_recovery["recover_on_exit_codes"] == [75]
    kind, _, count = asked["accelerators"].partition(":")
    assert resources.accelerators == {kind: int(count or 1)}


MISSPELT = [
    ("metadata", "labels"),
    ("spec", "failurePolicy", "maxRestarts"),
    ("spec", "failurePolicy", "rules", 0, "onJobFailureMessagePatterns"),
    ("spec", "replicatedJobs", 0, "replicas"),
    ("spec", "replicatedJobs", 0, "template", "spec", "completionMode"),
    ("spec", "replicatedJobs", 0, "template", "spec", "podFailurePolicy", "rules", 0, "onExitCodes"),
    ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "terminationGracePeriodSeconds"),
    ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "volumeMounts"),
]


@pytest.mark.parametrize("path", MISSPELT, ids=lambda path: str(path[-1]))
def test_a_misspelt_key_is_caught(path):
    manifest = yaml.safe_load((GOLDEN / "v5p-two-slices.yaml").read_text("utf-8"))
    within: Any = manifest
    for step in path[:-1]:
        within = within[step]
    within[path[-1] + "s"] = within.pop(path[-1])
    assert errors(manifest)


CRD = "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of github.com/kubernetes-sigs/jobset"
FREE = ("labels", "annotations", "nodeSelector", "limits", "requests", "matchLabels", "volumeAttributes")


def strict(schema: Any) -> Any:
    """JSON Schema of a CRD's own schema, by which keys that are not named are errors."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    if schema.get("type") == "object" and "properties" in schema and "x-kubernetes-map-type" not in schema:
        schema.setdefault("additionalProperties", False)
    return schema


def keys(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where each key stands, those aside that anybody may choose."""
    for step, within in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if isinstance(step, str):
            yield (*path, step)
        if step not in FREE:
            yield from keys(within, (*path, step))


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_hold_to_jobsets_own_definition_and_any_misspelt_key_is_caught(name):
    """No package holds the definition (CRD), and it is not ours to keep: JOBSET_CRD names the file."""
    if not (path := os.environ.get("JOBSET_CRD")):
        pytest.skip(f"JOBSET_CRD=FILE is not set; the file is {CRD}")
    (version,) = (one for one in yaml.safe_load(Path(path).read_text("utf-8"))["spec"]["versions"] if one["storage"])
    validator = jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))
    manifest = yaml.safe_load((GOLDEN / name).read_text("utf-8"))
    assert [error.message for error in validator.iter_errors(manifest)] == []
    places = [place for place in keys(manifest) if place[0] != "metadata"]  # Which Kubernetes defines, not JobSet.
    assert len(places) > 50
    for place in places:
        wrong = copy.deepcopy(manifest)
        within: Any = wrong
        for step in place[:-1]:
            within = within[step]
        within[f"{place[-1]}s"] = within.pop(place[-1])
        assert not validator.is_valid(wrong), place


def test_a_value_that_kubernetes_does_not_know_is_caught():
    manifest = yaml.safe_load((GOLDEN / "v5e.yaml").read_text("utf-8"))
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] = "none"
    assert errors(wrong)


@pytest.mark.parametrize("name", [name for name in ASKED if name.endswith(".sh")])
def test_batch_scripts_are_shell(name):
    subprocess.run(["bash", "-n", GOLDEN / name], check=True)


REFUSED = [
    ("gke", {"topology": "v5e:4x5"}, {}, r"no such slice of v5e"),
    ("gke", {"topology": "h100:8"}, {}, r"these are GPUs"),
    ("gke", {"topology": "v5e:2x2", "slices": 2}, {}, r"slices of one host, as v5e:2x2"),
    ("gke", {"topology": "v5e:4x4", "storage": "/nfs"}, {}, r"--storage=/nfs: where checkpoints go"),
    ("gke", {"topology": "v5e:4x4"}, {"mesh.tensor": 5}, r"--mesh.tensor=5 makes 5 devices, but there are 16"),
    ("gke", {"topology": "v5e:4x4", "slices": 2}, {"mesh.data": 1, "mesh.fsdp": 32}, r"does not go across 2 slices"),
    ("gke", {"topology": "tpu7x:4x4x4"}, {"train.batch_size": 96}, r"--train.batch_size=96 .* the 128 devices"),
    ("slurm", {"nodes": 3, "gpus": 8}, {}, r"the 24 devices of the mesh"),
    ("local", {"processes": 3}, {}, r"the 3 devices of the mesh"),
    ("skypilot", {"accelerators": "tpu-v6e-9"}, {}, r"no such slice of v6e"),
    ("skypilot", {"accelerators": "tpu-v6e-8"}, {}, r"--storage=: the bucket that checkpoints go to"),
    ("skypilot", {"accelerators": "H100:8", "nodes": 3}, {}, r"the 24 devices"),
]


@pytest.mark.parametrize(("on", "asked", "settings", "words"), REFUSED)
def test_what_would_not_run_is_refused_before_it_is_submitted(on, asked, settings, words, tmp_path):
    config = override(preset("smoke"), {"train.batch_size": 128, **settings})
    job = job_of(on, {"storage": "gs://bucket", **asked} if on == "gke" else asked)
    with pytest.raises(ConfigError, match=words):
        clusters.named(on).check(dataclasses.replace(job, arguments=(f"--run={tmp_path}/run",)), config)


def test_what_would_run_is_not_refused():
    config = override(preset("smoke"), {"train.batch_size": 1024, "mesh.fsdp": 16})
    for name in MANIFESTS[2:]:
        gke.check(job_of("gke", ASKED[name][1]), config)


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--run=.*/file/run: .*/file is not a folder"):
        jobs.check_folder(tmp_path / "file" / "run")
    jobs.check_folder(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], "and nothing is there"),
        (["launch.sample"], "not launch.sample"),
        (["launch.train", "--process_id=1"], "the cluster says which process is which"),
        (["launch.train", "--run", "runs/x"], "Write --run=FOLDER"),
        (["launch.train", "--config=smoke", "--train.step=4"], r"Did you mean: train.steps"),
    ],
)
def test_a_command_that_would_not_start_is_refused(command, words):
    with pytest.raises(ConfigError, match=words):
        jobs.resolve(command)


def test_a_command_is_resolved_by_the_program_itself():
    config, run = jobs.resolve(["launch.train", "--config=smoke", "--train.steps=7", "--run=/x/Try_1.a"])
    assert (config.train.steps, run) == (7, "/x/Try_1.a")
    assert jobs.name_of(Request(), run).name == "try-1-a"
    with pytest.raises(ConfigError, match="--name=-: at most 40 lower-case letters"):
        jobs.name_of(Request(), "/x/-")


def test_an_ablation_is_a_job_for_each_program_with_runs_to_train(monkeypatch):
    lines = [{"program": 1, "missing": 2}, {"program": 2, "missing": 0}, {"program": 3, "missing": 1}]
    monkeypatch.setattr(jobs, "_answer", lambda command, *more: "\n".join(map(json.dumps, lines)))
    command = ["launch.ablate", "--vary=model.width=16,32,64"]
    assert jobs.parts(command) == ["--program=1", "--program=3"]
    assert jobs.parts([*command, "--program=2"]) == jobs.parts(["launch.train"]) == [""]
    found = submit.job_of("slurm", Request(name="width"), "runs/width", command, "--program=3")
    assert (found.name, found.program) == ("width-3", "launch.ablate")
    assert found.arguments == (command[1], "--program=3", f"--run={Path('runs/width').absolute()}")
    assert "-m launch.ablate --vary" in slurm.render(found)
    assert slurm.log(found).name == "slurm-width-3.log"
    with pytest.raises(ConfigError, match=r"--on=gke: launch.ablate keeps SQLite files"):
        submit.check_alone("gke", Request(), "launch.ablate")
    with pytest.raises(ConfigError, match=r"--nodes=2: each job of launch.ablate is one process"):
        submit.check_alone("slurm", Request(nodes=2), "launch.ablate")


@pytest.mark.slow  # It starts five programs.
def test_an_ablation_is_trained_by_jobs_and_compared(state_home):
    (state_home / "a.txt").write_text("the cat sat on the mat\n" * 200, encoding="utf-8")
    run = state_home / "width"
    command = [
        "launch.ablate", "--config=smoke", f"--data.source=text:{state_home}/*.txt", "--vary=model.width=16,32",
        "--train.steps=4", "--model.layers=scan", "--seeds=2", f"--run={run}",
    ]  # fmt: skip

    def called(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=True)

    told = called("launch.submit", "--on=local", "--devices=2", "--yes", "--", *command)
    assert "width-1 on local" in told.stdout
    assert told.stdout.count(": done") == 2
    assert all((run / f"results-{number}.sqlite").exists() for number in (1, 2))
    compared = called(*command, "--json", "--compare_only").stdout.splitlines()
    assert [json.loads(line)["variant"] for line in compared] == ["model.width=16", "model.width=32"]
    assert "Nothing of" in called("launch.submit", "--on=local", "--yes", "--", *command).stderr


@pytest.fixture
def state_home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def test_records_are_found_by_name(state_home):
    job = job_of("slurm", {"nodes": 2}, "--config=smoke")
    jobs.save(job, "42")
    assert jobs.load("try") == (job, "42")
    with pytest.raises(ConfigError, match=r"No run 'other' was submitted from this machine: there are try"):
        jobs.load("other")


def supervised(monkeypatch, folder: Path, script: str, **asked: Any) -> tuple[int, str]:
    """Exit status and words of a supervisor whose processes run this script; its argument counts from 0 the starts."""
    job = job_of("local", {"processes": 2, "grace": 5, **asked})
    job.folder.mkdir(parents=True)
    runs = iter(range(100))
    monkeypatch.setattr(
        local, "_command", lambda job: [sys.executable, "-S", "-c", script, str(next(runs) // job.request.processes)]
    )
    monkeypatch.setattr(local, "POLL", 0.02)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        status = local.Supervisor(job).go()
    finally:
        signal.signal(signal.SIGTERM, handler)
    return status, (job.folder / "0.log").read_text()


HEAD = "import os, sys, time, signal\nturn, me = int(sys.argv[1]), int(os.environ['JAX_PROCESS_ID'])\n"


def test_a_saved_run_is_started_again_however_often_and_a_lost_one_so_many_times(state_home, monkeypatch):
    script = HEAD + "sys.exit([75, 75, 75, 1 - me, 0][turn]) if turn != 3 or me == 0 else os.kill(os.getpid(), 9)"
    status, words = supervised(monkeypatch, state_home, script, max_restarts=1)
    assert status == 0, words
    assert words.count("[75, 75]: saved; starting again") == 3
    assert "[1, -9]: failed, 1 of at most 1 times" in words


def test_a_run_that_fails_too_often_or_has_bad_flags_is_not_started_again(state_home, monkeypatch):
    status, words = supervised(monkeypatch, state_home, HEAD + "sys.exit(3)", max_restarts=1)
    assert (status, words.count("starting again")) == (3, 1)
    assert "it was started again 1 times" in words


def test_bad_flags_end_a_run_and_one_that_hangs_is_killed(state_home, monkeypatch):
    script = HEAD + "time.sleep(60 * me); sys.exit(2)"
    begun = time.monotonic()
    status, words = supervised(monkeypatch, state_home, script, grace=1)
    assert (status, "starting again" in words) == (2, False)
    assert time.monotonic() - begun < 30


def test_a_supervisor_that_is_stopped_lets_the_processes_save_and_does_not_start_them_again(state_home, monkeypatch):
    script = HEAD + (
        "ready = os.environ['XDG_STATE_HOME'] + '/ready'\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "if me: open(ready, 'w').close()\n"
        "while not os.path.exists(ready): time.sleep(0.01)\n"
        "if not me: os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)"
    )
    status, words = supervised(monkeypatch, state_home, script)
    assert (status, words) == (75, "")


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """A kubectl that answers what the API server would, and notes what it was asked."""
    script = f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nif [ "$1" = get ]; then cat {tmp_path}/answer; fi\n'
    (tmp_path / "kubectl").write_text(script)
    (tmp_path / "kubectl").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def answer(condition: str) -> None:
        conditions = [{"type": condition, "status": "True", "message": "why"}]
        (tmp_path / "answer").write_text(json.dumps({"status": {"restarts": 2, "conditions": conditions}}))

    return answer


def test_a_jobset_is_asked_for_its_state(kubectl):
    means = {"Completed": "done", "Failed": "failed", "Suspended": "waiting", "StartupPolicyCompleted": "running"}
    for condition, what in means.items():
        kubectl(condition)
        state = gke.state(job_of("gke", ASKED["v5e.yaml"][1]), "try")
        assert (state.what, state.detail.partition(",")[0]) == (what, "restarts 2")


def test_a_jobset_makes_room_for_another_of_its_name_when_it_has_ended(kubectl, tmp_path):
    job = job_of("gke", ASKED["v5e.yaml"][1])
    kubectl("StartupPolicyCompleted")
    with pytest.raises(ConfigError, match="There is a JobSet try in default, which is running"):
        gke.submit(job, Path("jobset.yaml"))
    assert "delete" not in (tmp_path / "asked").read_text()
    kubectl("Failed")
    assert gke.submit(job, Path("jobset.yaml")) == "try"
    assert (tmp_path / "asked").read_text().splitlines()[-2:] == [
        "delete jobset try --namespace=default",
        "create --filename=jobset.yaml",
    ]


def test_an_unknown_cluster_or_one_without_its_programs_is_named(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"--on=slrum: there are local, .* Did you mean slurm"):
        clusters.named("slrum")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="sbatch is not installed here"):
        slurm.submit(dataclasses.replace(job_of("slurm", {}), arguments=(f"--run={tmp_path}",)), Path("job.sh"))
