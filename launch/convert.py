"""Turn a checkpoint of another program into a run folder, and a run into a Hugging Face folder.

  uv run -m launch.convert --from=smollm2 --to=runs/smollm2
  uv run -m launch.convert --from=models/Llama-3.2-1B --to=runs/llama         a folder with config.json, *.safetensors
  uv run -m launch.convert --from=gguf:model-Q4_K_M.gguf --to=runs/model      or hf:ORG/NAME from the hub
  uv run -m launch.convert --from=runs/quickstart --to=models/quickstart      and back, for transformers to load

Every program also takes these checkpoints as they are, with --checkpoint; a run folder opens faster.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from absl import flags

from launch import start

if TYPE_CHECKING:
    from train.checkpoint import Restored

FLAGS = flags.FLAGS
FORMATS = ("auto", "run", "huggingface")


def define(_: Sequence[str]) -> None:
    """The flags of this program."""
    flags.DEFINE_string(
        "from",
        None,
        "What to convert: a Hugging Face folder, hf:ORG/NAME, gguf:FILE, smollm2, a run folder, or one of its steps as "
        "DIR@STEP.",
    )
    flags.DEFINE_string("to", None, "The folder to make; it must not exist yet.")
    flags.DEFINE_enum(
        "format",
        "auto",
        FORMATS,
        "What to make: a run folder of ours, or a Hugging Face folder that transformers loads; auto makes a Hugging "
        "Face folder of a run, and a run of everything else.",
    )


def run() -> None:
    """Read the one, write the other, and say what to do with it."""
    from configs.schema import ConfigError

    source, to = FLAGS["from"].value or "", FLAGS.to
    for name, value in (("from", source), ("to", to)):
        if not value:
            raise ConfigError(f"--{name} is missing: launch.convert --from=CHECKPOINT --to=FOLDER (see --help).")
    folder = pathlib.Path(to)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"--to={to} exists already: nothing is overwritten, choose another folder.")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # No accelerator is needed, and its memory may be in use.
    start.prepare_jax()
    import jax

    from configs.derived import translates
    from configs.schema import Mesh
    from model import exchange
    from model.sharding import make_mesh
    from train.checkpoint import CheckpointError, restore_params
    from train.run import save_run

    try:
        is_run = not exchange.is_foreign(source)
    except exchange.ExchangeError as error:
        raise CheckpointError(f"--from={source}: {error}") from error
    kind = FLAGS.format if FLAGS.format != "auto" else "huggingface" if is_run else "run"
    if is_run and kind == "run":
        raise ConfigError(f"--from={source} is a run already: copy the folder, or use --format=huggingface.")
    one_device = make_mesh(Mesh(data=1), jax.devices()[:1])
    with made(folder) as unfinished:
        with progress("reading"):
            restored = restore_params(source, one_device)
        with progress("writing"):
            (save_run if kind == "run" else write_huggingface)(unfinished, restored)
    count = sum(leaf.size for leaf in jax.tree.leaves(restored.params))
    print(f"{folder}: {restored.config.name}, {count / 1e6:.1f} M parameters")
    if kind == "run":
        print(f'next: uv run -m launch.sample --checkpoint={folder} --prompt="Once upon a time" --table=5')
    else:
        kind = "AutoModelForSeq2SeqLM" if translates(restored.config) else "AutoModelForCausalLM"
        print(f'next, in Python: transformers.{kind}.from_pretrained("{folder}")')


def write_huggingface(folder: pathlib.Path, restored: Restored) -> None:
    """Write a network as a Hugging Face folder; what LoRA learnt is merged into its weights.

    Raises CheckpointError if no network of `transformers` computes the same.
    """
    from configs.derived import translates
    from model import exchange
    from model.lora import merged
    from train.checkpoint import CheckpointError

    config, params = merged(restored.config, restored.params)
    tokenizer = restored.tokenizer
    try:
        exchange.write(
            folder,
            config,
            params,
            tokenizer.huggingface_json(),
            start=tokenizer.start_of_target if translates(config) else None,
            ends=tokenizer.ends,
            chat=dataclasses.asdict(tokenizer.chat) if tokenizer.chat else None,
        )
    except exchange.ExchangeError as error:
        raise CheckpointError(f"--from={FLAGS['from'].value}: {error}") from error


@contextmanager
def made(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write to, which becomes `folder` when all went well and else disappears."""
    folder = folder.resolve()  # `.` has no name.
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.replace(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@contextmanager
def progress(doing: str) -> Iterator[None]:
    """A moving bar on the terminal with the time that it has taken; none where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(doing, total=None)
        yield
        bar.update(task, total=1, completed=1)


if __name__ == "__main__":
    start.program("launch.convert", __doc__ or "", run, define, sys.argv)
