"""Who may import whom, and that programs start in seconds."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LAYERS = ("configs", "model", "train", "launch")  # Each may import those before it.
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
EVERY_FILE = sorted({*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")})
# What takes half a second or more to import, or is optional.
HEAVY = ("tensorflow_datasets", "grain", "altair", "vl_convert", "wandb", "orbax", "tensorboardX", "tensorboard")
SLOW = (*HEAVY, "jax", "flax", "optax", "tokenizers")
PROGRAMS = [path.stem for path in sorted((ROOT / "launch").glob("*.py")) if "__main__" in path.read_text("utf-8")]
PROGRAMS += [f"{path.parent.name}.__main__" for path in sorted((ROOT / "launch").glob("*/__main__.py"))]


def name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, everywhere: bool = True) -> Iterator[str]:
    """The modules that a file imports, whole names; not `everywhere`: those that importing it imports at once."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not everywhere:
            continue
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, everywhere)


def parse(path: pathlib.Path) -> ast.AST:
    return ast.parse(path.read_text("utf-8"))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_go_one_way(path):
    layer = name(path).split("/")[0]
    above = (*LAYERS[LAYERS.index(layer) + 1 :], "tests", "benchmarks")
    wrong = [module for module in imports(parse(path)) if module.split(".")[0] in above]
    assert not wrong, f"{layer} must not import {wrong}"


@pytest.mark.parametrize("path", EVERY_FILE, ids=name)
def test_no_other_framework_is_imported(path):
    if path.name in ("train_cpu_torch.py", "decode_cpu_transformers.py", "lens_cpu_torch.py"):
        pytest.skip("it is what a benchmark compares us with, in a process of its own")
    assert not {module.split(".")[0] for module in imports(parse(path))} & {"tensorflow", "torch", "keras"}


def loaded_at_once(module: str, seen: set[str]) -> set[str]:
    """What importing a module of ours imports, at once and through other modules of ours."""
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if module in seen or not path.exists():
        return seen
    seen.add(module)
    for imported in imports(parse(path), everywhere=False):
        if imported.split(".")[0] in LAYERS:
            parts = imported.split(".")
            for end in range(1, len(parts) + 1):  # Packages on the way are imported too.
                loaded_at_once(".".join(parts[:end]), seen)
        else:
            seen.add(imported)
    return seen


@pytest.mark.parametrize("program", PROGRAMS)
def test_starting_a_program_imports_nothing_slow(program):
    loaded = loaded_at_once(f"launch.{program}", set())
    assert "configs.schema" in loaded, "the search has lost its way"
    assert not {module.split(".")[0] for module in loaded} & {*SLOW}


@pytest.mark.parametrize("module", ["train.checkpoint", "train.metrics", "train.writing", "launch.views.report"])
def test_what_only_some_programs_need_is_imported_where_it_is_used(module):
    assert not {module.split(".")[0] for module in loaded_at_once(module, set())} & {*HEAVY}


def test_a_wrong_flag_is_answered_without_loading_jax():
    code = "import sys, launch.start, configs.flags; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "configs.flags" in loaded
    assert not loaded & {"numpy", *SLOW}


def test_the_search_for_imports_finds_them():
    tree = ast.parse("import a.b\nfrom c import d\nif x:\n    import e\ndef f():\n    import g\n")
    assert list(imports(tree)) == ["a.b", "c.d", "e", "g"]
    assert list(imports(tree, everywhere=False)) == ["a.b", "c.d", "e"]
