"""The runs of an ablation: what each is, in which programs they are trained, and where their results are kept."""

from __future__ import annotations

import functools
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from configs.ablations import Variant, label
from configs.check import check
from configs.convert import leaves, override, to_dict
from configs.derived import fills_in
from configs.schema import Config, ConfigError
from model import build
from model.sharding import parameter_shapes
from train.data.sections import Corpus
from train.data.sources import open_corpus
from train.data.tokenizer import Tokenizer, make_tokenizer
from train.metrics import train_flops_per_token
from train.stop import Stopped
from train.together import Line, program_of, train_together
from train.unfinished import Unfinished

TOGETHER = 16  # The most runs of one program, so that their states fit.
UNFINISHED = "unfinished"  # The folder, beside the results, of what was saved of groups that are not done.


@dataclass(frozen=True)
class RunPlan:
    """One run of an ablation."""

    variant: str  # In words.
    seed: int
    config: Config  # With the vocabulary's real size.

    @property
    def key(self) -> str:
        """Tells runs apart that are not the same; the name of a run does not."""
        values = {name: value for name, _, value in leaves(self.config) if name != "name"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def parameters(self) -> int:
        """How many the network has."""
        return count_parameters(self.config)

    @property
    def flops(self) -> float:
        """Of the whole training (see `train_flops_per_token`)."""
        return train_flops_per_token(self.config) * tokens_of(self.config)


def tokens_of(config: Config) -> int:
    """Tokens that a run is trained on."""
    return config.train.steps * config.train.batch_size * config.data.length


def count_parameters(config: Config) -> int:
    """Parameters of the network, without making any."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(build(config))))


class Corpora:
    """The text and the tokenizer of each config, opened and learnt once."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Corpus, Tokenizer]] = {}

    def of(self, config: Config) -> tuple[Corpus, Tokenizer]:
        """Those of a config as it was asked for, before it got the vocabulary's real size."""
        key = (config.data, config.tokenizer, fills_in(config))
        if key not in self._made:
            corpus = open_corpus(config.data)
            self._made[key] = corpus, make_tokenizer(config.tokenizer, corpus, masked=fills_in(config))
        return self._made[key]


def plan(
    base: Config, variants: Sequence[Variant], seeds: Sequence[int], match: str, corpora: Corpora
) -> list[RunPlan]:
    """The runs of all variants with all seeds; the first variant is the baseline.

    Args:
      match: `params`: the feed-forward width of each variant is chosen so that the network has about as many
        parameters as the baseline's; `flops`, `tokens`: its steps, so that training takes as many.

    Raises:
      ConfigError: a variant that cannot be, two that are the same, or that cannot be matched.
    """
    if len({label(variant) for variant in variants}) < len(variants):
        raise ConfigError("--vary: two variants are the same.")
    runs, baseline = [], None
    for variant in variants:
        asked = check(override(base, variant))
        _, tokenizer = corpora.of(asked)
        config = override(asked, {"tokenizer.vocab_size": tokenizer.size})
        baseline = baseline or config
        config = check(matched(config, baseline, match))
        runs += [RunPlan(label(variant), seed, override(config, {"train.seed": seed})) for seed in seeds]
    return runs


def matched(config: Config, baseline: Config, match: str) -> Config:
    """The config resized so that it costs what the baseline does; see `plan`."""
    if match in ("flops", "tokens"):
        cost = train_flops_per_token if match == "flops" else lambda config: 1.0
        of_baseline = cost(baseline) * tokens_of(baseline)
        per_step = cost(config) * config.train.batch_size * config.data.length
        return override(config, {"train.steps": max(1, round(of_baseline / per_step))})
    if match != "params" or config == baseline:
        return config
    wanted = count_parameters(baseline)

    def sized(eighths: int) -> Config:
        return override(config, {"model.feed_forward_width": 8 * eighths})

    low, high = 1, max(2, wanted // (8 * config.model.width))
    while low < high:  # The fewest that reach it.
        middle = (low + high) // 2
        low, high = (low, middle) if count_parameters(sized(middle)) >= wanted else (middle + 1, high)
    best = min((sized(max(1, low - 1)), sized(low)), key=lambda config: abs(count_parameters(config) - wanted))
    if abs(count_parameters(best) / wanted - 1) > 0.05:
        raise ConfigError(
            f"--match=params: no feed-forward width brings a variant's {count_parameters(best):,} parameters to "
            f"within 5% of the baseline's {wanted:,}."
        )
    return best


def programs(runs: Sequence[RunPlan]) -> list[list[RunPlan]]:
    """Runs that are trained together: those that differ in seeds and numbers alone, at most TOGETHER of them."""
    groups: dict[Any, list[RunPlan]] = {}
    for run in runs:
        groups.setdefault(program_of(run.config), []).append(run)
    return [some[start : start + TOGETHER] for some in groups.values() for start in range(0, len(some), TOGETHER)]


class Results:
    """What all runs came to, in one SQLite file; each run is there once, whichever ablations it belongs to.

    Tables: `runs` (key, variant, seed, config as JSON, status done, failed or pruned, error, seconds) and `lines` (key,
    step, name, value): what a run folder has in metrics.jsonl.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.folder.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path)
        self._database.executescript(
            """
            create table if not exists runs (key text primary key, variant text, seed integer, config text,
                                             status text, error text, seconds real);
            create table if not exists lines (key text, step integer, name text, value real,
                                              primary key (key, step, name));
            """
        )

    def done(self, run: RunPlan) -> bool:
        """Whether the run has been trained to its end; one that failed is tried again."""
        return self.status(run) == "done"

    def status(self, run: RunPlan) -> str:
        """What has become of the run: done, failed, pruned (a search saw no use in going on), or nothing yet."""
        found = self._database.execute("select status from runs where key=?", (run.key,)).fetchone()
        return found[0] if found else ""

    def error(self, run: RunPlan) -> str:
        """Why the run failed, or nothing."""
        found = self._database.execute("select error from runs where key=?", (run.key,)).fetchone()
        return found[0] if found else ""

    def put(self, run: RunPlan, lines: Sequence[Line], seconds: float, error: str = "", status: str = "") -> None:
        """Keeps what a run came to, all of it or nothing; without a `status` it is done, or failed with an error."""
        with self._database:
            self._database.execute("delete from lines where key=?", (run.key,))
            self._database.execute(
                "insert or replace into runs values (?, ?, ?, ?, ?, ?, ?)",
                (
                    run.key,
                    run.variant,
                    run.seed,
                    json.dumps(to_dict(run.config)),
                    status or ("failed" if error else "done"),
                    error,
                    seconds,
                ),
            )
            rows = [
                (run.key, int(line["step"]), name, value)
                for line in lines for name, value in line.items() if name != "step"
            ]  # fmt: skip
            self._database.executemany("insert or replace into lines values (?, ?, ?, ?)", rows)

    def take(self, path: Path, runs: Sequence[RunPlan]) -> None:
        """Copies from another file what these runs came to, where this one does not have them done."""
        found = [run.key for run in runs if not self.done(run)]
        marks = ", ".join("?" * len(found))
        self._database.execute("attach ? as other", (str(path),))
        theirs = f"where key in (select key from other.runs where key in ({marks}))"
        with self._database:
            self._database.execute(f"delete from main.lines {theirs}", found)
            for table in ("lines", "runs"):
                self._database.execute(
                    f"insert or replace into main.{table} select * from other.{table} {theirs}", found
                )
        self._database.execute("detach other")

    def lines(self, run: RunPlan, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, by step."""
        found = self._database.execute(
            "select step, value from lines where key=? and name=? order by step", (run.key, name)
        )
        return found.fetchall()

    def close(self) -> None:
        """Closes the file."""
        self._database.close()


def train_all(
    runs: Sequence[RunPlan],
    results: Results,
    corpora: Corpora,
    base: Config,
    on_step: Callable[[int], object] = lambda done: None,
) -> None:
    """Trains the runs that `results` does not have, program by program; one that fails does not stop the others.

    Args:
      base: the config that the variants were made from, by whose vocabulary the tokenizers were asked for.
      on_step: called with how many steps of single runs have been trained; may raise Stopped, as in `train_together`.
    """
    done = 0

    def count_done(steps: int) -> None:
        nonlocal done
        done += steps
        on_step(done)

    for group in programs([run for run in runs if not results.done(run)]):
        train_group(group, results, corpora, base, functools.partial(count_done, len(group)))


def train_group(
    group: Sequence[RunPlan],
    results: Results,
    corpora: Corpora,
    base: Config,
    on_step: Callable[[], object],
    prune: Callable[[list[list[Line]]], bool] = lambda lines: False,
    free: Collection[str] = (),
) -> None:
    """Trains the runs of one program and keeps what they came to, an error among it; see `train_all`.

    The same group that was killed before goes on from where it was saved last (`train.unfinished`).

    Args:
      prune: called after each evaluation with the lines so far; where it is true, all runs end, and those that have not
        come to their last step are kept as pruned.
      free: see `train_together`.
    """
    began, error, lines = time.perf_counter(), "", [[] for _ in group]
    asked = override(group[0].config, {"tokenizer.vocab_size": base.tokenizer.vocab_size})
    keys = " ".join(run.key for run in group)
    unfinished = Unfinished(results.folder / UNFINISHED / hashlib.sha256(keys.encode()).hexdigest()[:16])
    try:
        corpus, tokenizer = corpora.of(asked)
        configs = [run.config for run in group]
        lines = train_together(configs, corpus, tokenizer, on_step, prune, free, unfinished)
    except Stopped:
        raise
    except Exception as failure:  # Whatever it is, it is one program's: the others go on.
        error = f"{type(failure).__name__}: {failure}"
    finally:
        unfinished.close()
    seconds = (time.perf_counter() - began) / len(group)
    for run, own in zip(group, lines, strict=True):
        told = error or _anomaly(run.config, own)
        short = not told and own[-1]["step"] < run.config.train.steps
        results.put(run, own, seconds, told, "pruned" if short else "")
    if not error:
        unfinished.remove()


def _anomaly(config: Config, lines: Sequence[Line]) -> str:
    """Why a run ended early, or nothing."""
    if config.train.anomaly != "stop":
        return ""
    bad = next((line for line in lines if line.get("train/anomaly")), None)
    return "" if bad is None else f"Stopped at step {bad['step']}: the loss was {bad['train/loss']:g}."
