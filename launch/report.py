"""What a finished run shows: samples on the terminal, and report.html."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any, TextIO

from configs.convert import to_dict
from configs.derived import fills_in, is_made_up, longest_text, translates
from configs.schema import Config
from launch.look import count, look_at, read_ids, shown_pair
from launch.translations import held_out_translations, tell
from launch.views.report import Report, report_page
from launch.views.structure import structure_svg
from launch.views.terminal import Console
from model import build
from model.generate import Sampling
from train.baselines import baselines
from train.checkpoint import restore_params
from train.data.pipeline import held_out_batches, padding_efficiency, train_batches
from train.run import Run
from train.storage import write_atomically
from train.writing import write

NUM_SAMPLES = 3
TABLE_TOKENS = 12
LOOK_TOKENS = 40  # Of held-out text in the attention picture: what fits on a screen.


def write_report(run: Run, command: str, terminal: TextIO) -> Path:
    """Print samples of the finished run on `terminal` and write its report.html, whose path is returned."""
    restored = restore_params(run.folder)
    module, params, config = build(run.config), restored.params, run.config

    translations = look = None
    prompts: list[str] = []
    if translates(config):
        translations = held_out_translations(run, module, params)
        prompts = [shown_pair(run).source]
    else:
        held_out_text = _held_out_sentence(run)
        if not fills_in(config):
            _print_samples(run, module, params, terminal)
            prompts = [config.train.sample_prompt, held_out_text]
        if config.model.network != "lstm":
            look = look_at(module, params, run.tokenizer, read_ids(run.tokenizer, held_out_text))
            if look.weights_LNTS.min() < 0:  # Delta attention also takes away: no average, so no picture of one.
                look = None
    tables = write(
        module, params, run.tokenizer, prompts,
        Sampling(temperature=0), max_tokens=TABLE_TOKENS, seeds=range(len(prompts)), top=5,
    ) if prompts else []  # fmt: skip

    metrics = _lines(run.folder / "metrics.jsonl")
    evaluations = [line for line in metrics if "eval/bits_per_byte" in line]
    report = Report(
        config=to_dict(config),
        command=command,
        data=run.corpus.description + _evaluated_on(config),
        metrics=metrics,
        samples=_lines(run.folder / "samples.jsonl"),
        baselines={} if translations or fills_in(config) or is_made_up(config.data) else _baselines(run),
        bits_per_byte=evaluations[-1]["eval/bits_per_byte"] if evaluations else math.nan,
        tables=[sample.to_dict() for sample in tables],
        attention=look,
        structure_svg=structure_svg(config, count(params)),
        facts=_facts(run, metrics, count(params)),
        translations=translations,
    )
    if translations:
        tell(translations, terminal)
    else:
        _tell(report, config, terminal)
    path = run.folder / "report.html"
    write_atomically(path, report_page(report))
    return path


def _print_samples(run: Run, module: Any, params: Any, terminal: TextIO) -> None:
    prompts = [run.config.train.sample_prompt] * NUM_SAMPLES
    console = Console(terminal, table=0, prompts=prompts)
    write(
        module, params, run.tokenizer, prompts, Sampling(temperature=0.8), max_tokens=96,
        seeds=range(NUM_SAMPLES), on_token=console.on_token,
    )  # fmt: skip
    console.close()


def _evaluated_on(config: Config) -> str:
    """What to add where the run was judged on less than the baselines were."""
    batches = config.train.eval_batches
    return f" (evaluated on the first {batches} held-out batches, the baselines on all)" if batches else ""


def _tell(report: Report, config: Config, terminal: TextIO) -> None:
    """The run's bits per byte beside those of the baselines."""
    print(f"\nbits per byte of held-out text{_evaluated_on(config)}, less is better:", file=terminal)
    rows = {**report.baselines, "this run": report.bits_per_byte}
    for name, bits in sorted(rows.items(), key=lambda row: -row[1]):
        print(f"  {name:<10} {bits:.3f}", file=terminal)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _baselines(run: Run) -> dict[str, float]:
    """Of baselines.json; computed once, since they depend on the text and the tokens only."""
    path = run.folder / "baselines.json"
    if not path.exists():
        write_atomically(path, json.dumps(baselines(run.corpus, run.tokenizer)))
    return json.loads(path.read_text("utf-8"))


def _held_out_sentence(run: Run) -> str:
    """The beginning of the first held-out section that is long enough (the very first, if none is)."""
    sections, tokenizer = run.corpus.held_out, run.tokenizer
    length = min(LOOK_TOKENS, longest_text(run.config) or LOOK_TOKENS) - 1  # The end-of-text token comes before it.
    read = (sections[index] for index in range(min(len(sections), 100)))
    texts = (tokenizer.encode((section.source or section.text).strip()) for section in read)
    ids = next((ids for ids in texts if len(ids) >= length), tokenizer.encode(sections[0].text))
    return tokenizer.decode(ids[:length]).rstrip("\N{REPLACEMENT CHARACTER}")


def _facts(run: Run, metrics: list[dict[str, Any]], num_parameters: int) -> list[tuple[str, str]]:
    """What the headline says besides bits per byte."""

    def median(name: str) -> float:
        return statistics.median([line[name] for line in metrics if name in line] or [0.0])

    config = run.config
    batches = train_batches(run.corpus, run.tokenizer, config)
    batch = next(batches)
    batches.close()
    held_out = list(itertools.islice(held_out_batches(run.corpus, run.tokenizer, config), 50))
    shares = [("of a training batch is text, the rest padding", f"{padding_efficiency(batch):.1%}")]
    if "source" in batch:
        shares = [
            (f"of a training batch's {side} is text, the rest padding", f"{(batch[name] > 0).mean():.1%}")
            for side, name in (("source", "source_segments"), ("target", "segments"))
        ]
    held_out_share = statistics.mean([padding_efficiency(batch) for batch in held_out] or [0.0])
    tokens_per_second = median("train/tokens_per_second")
    tokens = config.train.steps * config.train.batch_size * config.data.length
    seconds = tokens / tokens_per_second if tokens_per_second else 0.0
    return [
        ("parameters", f"{num_parameters / 1e6:.2f} M"),
        ("tokens read", f"{tokens / 1e6:.2f} M"),
        ("time in training steps", f"{seconds:.0f} s"),
        ("tokens/s", f"{tokens_per_second:,.0f}"),
        ("of the matmul peak (MFU)", f"{median('train/mfu'):.0%}"),
        *shares,
        ("of a held-out batch is text", f"{held_out_share:.1%}"),
    ]
