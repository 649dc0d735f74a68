"""Checkpoints, configs and datasets are data: nothing in them is run, and nothing outside of their folder is read."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pickle
import sys
from pathlib import Path

import pytest

from train.checkpoint import CheckpointError, restore_params
from train.data.chat import ChatError, ChatTemplate

ROOT = Path(__file__).parents[1]
ROOMS = ("configs", "model", "train", "launch")
# Modules that run what they read, and calls that do.
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
}
KEYWORDS = {"allow_pickle", "trust_remote_code", "shell"}


def test_no_code_of_ours_runs_what_it_reads():
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(files) > 100
    assert not [f"{path.relative_to(ROOT)}:{found}" for path in files for found in dangers(path.read_text("utf-8"))]


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from marshal import loads", "eval(text)", "os.system(text)", "yaml.load(text)",
        "np.load(path, allow_pickle=True)", "subprocess.run(text, shell=True)",
    ],
)  # fmt: skip
def test_what_would_run_it_is_found(text):
    assert list(dangers(text))


def dangers(text: str):
    for node in ast.walk(ast.parse(text)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in CALLS:
                yield f"{node.lineno}: {ast.unparse(node.func)}"
            for keyword in node.keywords:
                if keyword.arg in KEYWORDS and not (
                    isinstance(keyword.value, ast.Constant) and not keyword.value.value
                ):
                    yield f"{node.lineno}: {keyword.arg}"
        yield from (f"{node.lineno}: {module}" for module in modules if module.split(".")[0] in MODULES)


class Bomb:
    """What is run where it is unpickled."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self):
        return (os.mkdir, (str(self.sign),))


def test_a_bomb_goes_off_where_somebody_unpickles(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "sign")))
    assert (tmp_path / "sign").is_dir()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "tokenizer.json", "modeling.py"])
def test_nothing_in_a_foreign_folder_is_run(tmp_path, name):
    folder, sign = tmp_path / "folder", tmp_path / "sign"
    folder.mkdir()
    config = {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    content = f"import os\nos.mkdir({str(sign)!r})\n".encode() if name.endswith(".py") else pickle.dumps(Bomb(sign))
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError):
        restore_params(str(folder))
    assert not sign.exists()


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside.safetensors", "sub/../../outside.safetensors"])
def test_an_index_cannot_name_files_outside_of_its_folder(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside.safetensors").write_bytes(b"")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not the name of a file in the folder"):
        restore_params(str(folder))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{% include '/etc/hostname' %}",
        "{{ cycler.__init__.__globals__.os.mkdir('SIGN') }}",
    ],
)
def test_a_chat_template_reaches_nothing_but_the_messages(tmp_path, template):
    sign = tmp_path / "sign"
    with pytest.raises(ChatError):
        ChatTemplate(template.replace("SIGN", str(sign))).render([{"role": "user", "content": "Hello"}])
    assert not sign.exists()


def audited(monkeypatch, folder: Path, packages: list[dict], exploited: set[str]) -> int:
    """The status of the gate's audit, where pip-audit says this and these are known to be exploited."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    says = folder / "pip-audit"
    says.write_text(f"#!/bin/sh\necho '{json.dumps({'dependencies': packages})}'\nexit 1\n")
    says.chmod(0o755)
    monkeypatch.setattr(audit, "exploited", lambda: exploited)
    monkeypatch.setattr(sys, "argv", ["audit", str(says)])
    return audit.main()


def test_the_gate_fails_on_vulnerabilities_that_are_known_to_be_exploited_alone(monkeypatch, tmp_path, capsys):
    found = {"id": "PYSEC-1", "aliases": ["CVE-2030-1"], "fix_versions": ["2"]}
    packages = [{"name": "old", "version": "1", "vulns": [found]}, {"name": "other", "skip_reason": "unknown"}]
    assert audited(monkeypatch, tmp_path, packages, {"CVE-2030-2"}) == 0
    told = capsys.readouterr().out
    assert "old 1: CVE-2030-1, PYSEC-1; mended in 2" in told
    assert "does not know them: other" in told
    assert audited(monkeypatch, tmp_path, packages, {"CVE-2030-1"}) == 1
    assert "EXPLOITED: old 1" in capsys.readouterr().out
    assert audited(monkeypatch, tmp_path, packages[1:], set()) == 0
    assert capsys.readouterr().out.startswith("The advisory service cannot be reached, nothing was audited")
