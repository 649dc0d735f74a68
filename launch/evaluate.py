"""How good a network is: on held-out text, on files, on questions with examples, and on lm-eval's tasks.

uv run -m launch.evaluate --checkpoint=runs/quickstart                        held-out text of the run
uv run -m launch.evaluate --checkpoint=smollm2 --files='docs/*.md'            perplexity, bits per byte
uv run -m launch.evaluate --checkpoint=smollm2 --files=README.md --weights=int8    what 8 bits cost
uv run -m launch.evaluate --checkpoint=smollm2 --shots=0,1,2,4,8,16 --out=.   do examples in the prompt help?
uv run -m launch.evaluate --checkpoint=smollm2 --tasks=capitals,sums --shots=0,8
uv run -m launch.evaluate --checkpoint=smollm2 --tasks=mine --include_path=tasks --shots=2    lm-eval, a task of yours

The tasks capitals, french, antonyms and sums are our own and need nothing; others are lm-eval's (the extra `evaluate`).
docs/evaluation.md says what is measured how.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import start, weights
from launch.progress import Done, progress

if TYPE_CHECKING:
    from train.checkpoint import Restored

FLAGS = flags.FLAGS
SHOTS = [0, 1, 2, 4, 8, 16]
QUESTIONS = 40


def define(_: Sequence[str]) -> None:
    """The flags of this program."""
    flags.DEFINE_string("checkpoint", "runs/quickstart", start.CHECKPOINT)
    flags.DEFINE_multi_string(
        "files", [], "Perplexity of these UTF-8 files, each a document; a pattern such as 'docs/*.md'; repeatable."
    )
    flags.DEFINE_integer(
        "window", 0, "The most tokens that are read at once; 0 is what the network was trained on, at most 1024."
    )
    flags.DEFINE_integer(
        "stride", 0, "With --files: tokens that each window predicts, after window - stride others; 0 is half a window."
    )
    weights.define()
    flags.DEFINE_list("tasks", [], "Tasks: capitals, french, antonyms, sums, or lm-eval's, comma-separated.")
    flags.DEFINE_string("include_path", "", "A folder with lm-eval's task files (YAML) of your own.")
    flags.DEFINE_list(
        "shots", [], "Numbers of examples in the prompt, comma-separated; by default 0 for tasks of lm-eval."
    )
    flags.DEFINE_integer("draws", 4, "Our own tasks: how often examples and questions are drawn.")
    flags.DEFINE_integer(
        "questions", 0, f"Questions of each task; 0 is {QUESTIONS} for each draw of our own, and all of lm-eval's."
    )
    flags.DEFINE_integer("seed", 0, "Seed of the first draw.")
    flags.DEFINE_string("out", "", "Our own tasks: the folder to write shots.html, .png and .svg to; empty for none.")
    flags.DEFINE_boolean("json", False, "One JSON object per result on stdout instead of tables.")


def run() -> None:
    """Restore, measure, show."""
    check_flags()
    start.prepare_jax()
    from model import build
    from train.fewshot import TASKS

    shots = shots_asked()
    tasks = FLAGS.tasks or (list(TASKS) if shots or FLAGS.out else [])
    own, others = [name for name in tasks if name in TASKS], [name for name in tasks if name not in TASKS]
    if others:
        check_harness()
    restored = weights.restore(FLAGS.checkpoint)
    module = build(restored.config)
    restored = weights.as_asked(restored) if FLAGS.weights else restored
    with weights.shared(), progress() as on_done:
        if FLAGS.files:
            evaluate_files(module, restored, on_done)
        if own:
            evaluate_shots(module, restored, own, shots or SHOTS, on_done)
        if others:
            evaluate_tasks(module, restored, others, shots or [0], on_done)
        if not FLAGS.files and not tasks:
            evaluate_held_out(module, restored)


def check_flags() -> None:
    """Raises ConfigError for flags that cannot be, or that have no effect."""
    from configs.schema import ConfigError

    weights.check()
    for name, least in (("window", 0), ("stride", 0), ("draws", 1), ("questions", 0)):
        if getattr(FLAGS, name) < least:
            raise ConfigError(f"--{name}={getattr(FLAGS, name)}: it must be at least {least}.")
    if FLAGS.stride and not FLAGS.files:
        raise ConfigError(f"--stride={FLAGS.stride} is for --files.")
    if FLAGS.include_path and not FLAGS.tasks:
        raise ConfigError(f"--include_path={FLAGS.include_path} is for --tasks: name those to run.")
    if FLAGS.include_path and not pathlib.Path(FLAGS.include_path).is_dir():
        raise ConfigError(f"--include_path={FLAGS.include_path}: there is no such folder.")


def shots_asked() -> list[int]:
    """The numbers of examples. Raises ConfigError for what is none."""
    from configs.schema import ConfigError

    if not all(number.isdecimal() for number in FLAGS.shots):
        raise ConfigError(f"--shots={','.join(FLAGS.shots)}: it must be numbers, such as 0,1,4.")
    return [int(number) for number in FLAGS.shots]


def check_harness() -> None:
    """Raises ConfigError without lm-eval."""
    import importlib.util

    from configs.schema import ConfigError
    from train.fewshot import TASKS

    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            f"--tasks={','.join(FLAGS.tasks)}: all but {', '.join(TASKS)} need the package lm-eval; "
            f"`uv pip install 'lm-eval>=0.4.9'`, or the extra `evaluate`, brings it."
        )


def window_of(restored: Restored) -> int:
    """The most tokens that are read at once."""
    return FLAGS.window or min(1024, restored.config.model.max_length or restored.config.data.length)


def evaluate_held_out(module: Any, restored: Restored) -> None:
    """The evaluation that the run itself makes, on all of its held-out text."""
    from configs.schema import ConfigError
    from model.sharding import make_mesh
    from train.checkpoint import find, is_foreign
    from train.data.pipeline import held_out_batches
    from train.data.sections import check_unchanged
    from train.data.sources import open_corpus
    from train.evaluate import make_evaluate, make_score

    if is_foreign(FLAGS.checkpoint):
        raise ConfigError(f"--checkpoint={FLAGS.checkpoint} has no held-out text: give it some with --files.")
    config, tokenizer = restored.config, restored.tokenizer
    corpus = open_corpus(config.data)
    origin = find(FLAGS.checkpoint)[0] / "data.json"
    if origin.exists():
        check_unchanged(corpus, json.loads(origin.read_text("utf-8"))["corpus"])
    evaluate = make_evaluate(module, tokenizer.byte_lengths, weights.mesh_asked() or make_mesh(config.mesh))
    values = evaluate(restored.params, held_out_batches(corpus, tokenizer, config)) or {}
    score = make_score(module, config, corpus, tokenizer)
    values |= (score(restored.params) or {}) if score else {}
    tell(
        {
            "text": "held out",
            "source": config.data.source,
            "step": restored.step,
            "length": config.data.length,
            **values,
        }
    )


def evaluate_files(module: Any, restored: Restored, on_done: Done) -> None:
    """Perplexity of the files."""
    from train.perplexity import perplexity, read_files

    window = window_of(restored)
    found = perplexity(
        module, restored.params, restored.tokenizer, read_files(FLAGS.files),
        window=window, stride=FLAGS.stride or max(1, window // 2),
        on_done=lambda done, total: on_done("windows", done, total),
    )  # fmt: skip
    tell({"text": " ".join(FLAGS.files), **found.to_dict()})


def evaluate_shots(module: Any, restored: Restored, tasks: list[str], shots: list[int], on_done: Done) -> None:
    """Accuracy against the number of examples: a table, and with --out a page and pictures."""
    from launch.views.shots import shots_page, shots_png, shots_svg
    from train.fewshot import shot_curves

    found = shot_curves(
        module, restored.params, restored.tokenizer, tasks, shots,
        draws=FLAGS.draws, questions=FLAGS.questions or QUESTIONS, seed=FLAGS.seed,
        on_done=lambda done, total: on_done("questions", done, total),
    )  # fmt: skip
    for one in found:
        if FLAGS.json:
            print(json.dumps(one.to_dict()))
            continue
        low, high = one.interval
        print(
            f"{one.task:<10} {one.shots:>3} examples  {one.right:>4}/{one.asked}  {one.accuracy:6.1%}  "
            f"[{low:6.1%}, {high:6.1%}]  draws {min(one.by_draw):.0%}-{max(one.by_draw):.0%}  "
            f"log-probability {one.logprob:7.2f}"
        )
    if FLAGS.out:
        out, title = pathlib.Path(FLAGS.out), f"{FLAGS.checkpoint}: examples in the prompt"
        command = shlex.join(["uv", "run", "-m", "launch.evaluate", *sys.argv[1:]])
        out.mkdir(parents=True, exist_ok=True)
        (out / "shots.html").write_text(shots_page(found, title, command), encoding="utf-8")
        (out / "shots.png").write_bytes(shots_png(found, title))
        (out / "shots.svg").write_text(shots_svg(found, title), encoding="utf-8")
        print(out / "shots.html", file=sys.stderr)


def evaluate_tasks(module: Any, restored: Restored, tasks: list[str], shots: list[int], on_done: Done) -> None:
    """Tasks of lm-eval, with each number of examples."""
    from train.harness import LanguageModel, evaluate

    network = LanguageModel(module, restored, window_of(restored), on_done)
    for count in shots:
        for result in evaluate(
            network, tasks, count, include_path=FLAGS.include_path, limit=FLAGS.questions or None, seed=FLAGS.seed
        ):
            tell(result)


def tell(values: dict[str, Any]) -> None:
    """One result, for people or for scripts."""
    if FLAGS.json:
        print(json.dumps(values))
        return
    print("  ".join(f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in values.items()))  # fmt: skip


if __name__ == "__main__":
    start.program("launch.evaluate", __doc__ or "", run, define, sys.argv)
