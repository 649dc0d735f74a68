"""What a run tells: to metrics.jsonl, TensorBoard and Weights & Biases, and to a person at the terminal."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from configs.convert import to_dict
from configs.derived import encoder_layers, head_width, is_recurrent, layer_windows, source_length, translates
from configs.schema import Config, ConfigError
from model import build
from model.lora import LORA
from model.sharding import parameter_shapes
from train.storage import Lines, in_bucket, write_atomically, writing


class Writer(Protocol):
    """Somewhere that metrics go."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics after `step` steps."""
        ...

    def close(self) -> None:
        """Writes what is left, and ends."""
        ...


class JsonLines:
    """A file of JSON objects, one a line, each with its `step`, written as `Lines` are.

    Opened at `step`, it loses what a later step wrote, and a last line that was torn by a kill. `kept` is
    what remains. Raises RunFolderError where the file cannot be read or written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.kept: list[dict[str, Any]] = []
        with writing(path):
            if path.is_file():
                lines = (_parsed(line) for line in path.read_bytes().splitlines())
                self.kept = [line for line in lines if line is not None and line["step"] <= step]
                write_atomically(path, "".join(json.dumps(line) + "\n" for line in self.kept))
        self._file = Lines(path)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends a line."""
        line = {"step": step, **{name: _valid(value) for name, value in metrics.items()}}
        self._file.write(line)

    def sync(self) -> None:
        """Returns when all lines are where a start after a kill finds them."""
        self._file.sync()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Event files in the run folder; what a later step wrote before is hidden."""

    def __init__(self, run_dir: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        with writing(run_dir):
            # Its thread ends where the disk is full: nobody may wait for room in the queue then.
            self._writer = SummaryWriter(str(run_dir), purge_step=step + 1 if step else None, max_queue=1_000_000)
        self._run_dir = run_dir

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a point to each metric's curve."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is queued. Raises RunFolderError where it cannot be written."""
        with writing(self._run_dir):
            self._writer.close()


class WeightsAndBiases:
    """A run of `config.train.wandb`; a run folder that is resumed goes on in the same one."""

    def __init__(self, run_dir: Path, config: Config) -> None:
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError as error:
            raise ConfigError(
                f"--train.wandb={config.train.wandb} needs a package that is not installed: `pip install wandb`"
            ) from error
        identity = run_dir / "wandb_id"
        if not identity.exists():
            write_atomically(identity, wandb.util.generate_id())
        try:
            self._run = wandb.init(
                project=config.train.wandb, name=config.name, id=identity.read_text(), resume="allow",
                dir=None if in_bucket(run_dir) else str(run_dir), config=to_dict(config),
                settings=wandb.Settings(console="off"),
            )  # fmt: skip
        except Exception as error:  # No login, no network: wandb has many classes for it.
            raise ConfigError(f"--train.wandb={config.train.wandb} cannot be used: {error}") from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Sends what is queued."""
        self._run.finish()


class Terminal:
    """The person who watches, on stderr: a live bar where that is a terminal, and lines where it is not."""

    def __init__(self, steps: int, step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._steps, self._began = steps, (step, time.monotonic())
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._bar = None
        if self._console.is_terminal:
            columns = (
                BarColumn(10), TextColumn("{task.completed}/{task.total} {task.description}"),
                TimeRemainingColumn(compact=True),
            )  # fmt: skip
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("compiling", total=steps, completed=step)
            self._bar.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar, or prints a line."""
        told = "  ".join(form.format(metrics[name]) for name, form in _TOLD.items() if name in metrics)
        if metrics.get("train/anomaly"):
            self.say(f"step {step}/{self._steps}  {told}  the update was skipped")
        elif "eval/loss" in metrics:
            self.say(f"step {step}/{self._steps}  {told}")
        elif self._bar is not None:
            self._bar.update(self._task, description=told, completed=step)
        else:
            self.say(f"step {step}/{self._steps}  {told}{self._left(step)}")

    def say(self, text: str) -> None:
        """One line, or more, above the bar."""
        self._console.print(text, markup=False)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.stop()

    def _left(self, step: int) -> str:
        first, began = self._began
        if step <= first + 1:
            return ""
        seconds = round((time.monotonic() - began) / (step - first) * (self._steps - step))
        return f"  {seconds // 60}:{seconds % 60:02d} left"


_TOLD = {
    "train/loss": "loss {:.3f}",
    "train/bits_per_byte": "{:.3f} bits/byte",
    "train/tokens_per_second": "{:,.0f} tokens/s",
    "train/mfu": "MFU {:.0%}",
    "eval/loss": "held-out loss {:.3f}",
    "eval/bits_per_byte": "held-out {:.3f} bits/byte",
    "eval/bleu": "BLEU {:.1f}",
    "eval/chrf": "chrF {:.1f}",
}


class Pace:
    """How fast training goes, between one call of `measure` and the next, less the pauses."""

    def __init__(self, config: Config) -> None:
        self._tokens_per_step = config.train.batch_size * config.data.length
        self._share_per_token = train_flops_per_token(config) / (matmul_peak(config.model.dtype) * jax.process_count())
        self._mark: tuple[int, float] | None = None

    def measure(self, step: int) -> dict[str, float]:
        """train/tokens_per_second and train/mfu since the last call; the first, after compiling, has none."""
        mark, self._mark = self._mark, (step, time.perf_counter())
        if mark is None or mark[0] == step:
            return {}
        tokens_per_second = (step - mark[0]) * self._tokens_per_step / (self._mark[1] - mark[1])
        return {
            "train/tokens_per_second": tokens_per_second,
            "train/mfu": tokens_per_second * self._share_per_token,
        }

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside is not training."""
        began = time.perf_counter()
        yield
        if self._mark is not None:
            step, at = self._mark
            # Metrics that were read inside have set the mark there.
            self._mark = (step, at + time.perf_counter() - max(began, at))


# Parameters that source tokens are multiplied with.
OF_THE_SOURCE = ("encoder/", "layers/cross_attention/key/", "layers/cross_attention/value/")


def train_flops_per_token(config: Config) -> float:
    """Model FLOPs of forward and backward per token (PaLM, Chowdhery et al. 2022, appendix B).

    6 P + sum over layers of 12 N H S, where P counts the weights of all matrices that a token is multiplied
    with (attention projections, feed-forward, the output layer even where it is the embedding; the look-up
    of the embedding is no multiplication; of the experts those that a token goes to) and S is the number of keys,
    the row's length or the layer's window (linear and delta attention: H, the width of their state). As is usual,
    causal masking takes nothing off, and what remat computes again does not count. Where a source is translated,
    its share is counted with the target's tokens, as if both rows were full.
    """
    model, length = config.model, config.data.length
    sources = source_length(config.data) / length  # Source tokens for each target token.
    matrices = float(model.width * config.tokenizer.vocab_size) if model.tied_embeddings else 0.0
    shapes: dict[str, Any] = flatten_dict(parameter_shapes(build(config)), sep="/")
    for path, leaf in shapes.items():
        if path.rpartition("/")[2] in ("kernel", *LORA):
            used = model.experts_per_token / model.num_experts if "experts" in path.split("/") else 1.0
            matrices += leaf.size * used * (sources if path.startswith(OF_THE_SOURCE) else 1.0)
    if is_recurrent(config):
        return 6.0 * matrices
    heads = model.num_heads * head_width(config)

    def keys(num_layers: int, length: int) -> int:
        if model.attention in ("linear", "delta"):
            return num_layers * head_width(config)
        return sum(min(window, length) if window else length for window in layer_windows(config, num_layers))

    seen = float(keys(model.num_layers, length))
    if translates(config):
        seen += (
            model.num_layers * source_length(config.data)
            + keys(encoder_layers(config), source_length(config.data)) * sources
        )
    return 6.0 * matrices + 12.0 * heads * seen


@functools.cache
def matmul_peak(dtype: str) -> float:
    """FLOP/s that this process's devices together reach in matmuls of `dtype`, measured in less than a second.

    One device is measured. Simulated CPU devices share the same cores, so that one speaks for all.
    """
    on_cpu = jax.default_backend() == "cpu"
    size, repeats = (1024, 2) if on_cpu else (8192, 16)
    a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    scale = jnp.asarray(1 / math.sqrt(size), dtype)  # keeps the products from growing
    chain = jax.jit(lambda a, b: jax.lax.fori_loop(0, repeats, lambda _, x: (x @ b) * scale, a))
    chain(a, b).block_until_ready()
    best, deadline = math.inf, time.perf_counter() + 0.3
    while time.perf_counter() < deadline:
        began = time.perf_counter()
        chain(a, b).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 * repeats / best * (1 if on_cpu else jax.local_device_count())


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _valid(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
