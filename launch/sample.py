"""Write or translate text with a checkpoint, and see the probabilities behind each word.

uv run -m launch.sample --checkpoint=runs/quickstart --prompt="def "
uv run -m launch.sample --checkpoint=runs/quickstart --prompt="import" --temperature=0 --table=5
uv run -m launch.sample --checkpoint=runs/translate --prompt="Click the icon." --prompt="Choose a file." --beams=4
uv run -m launch.sample --checkpoint=runs/quickstart --prompt="import " --beams=4 --beam_groups=4 --num_samples=4
uv run -m launch.sample --checkpoint=smollm2 --score="The capital of France is Paris." --table=3
uv run -m launch.sample --checkpoint=smollm2 --prompt="def add(a, b):" --weights=int8 --lookup=4
uv run -m launch.sample --checkpoint=runs/encoder --prompt="def <|mask|>(self):"
uv run -m launch.sample --checkpoint=smollm2 --prompt="My phone number is" --regex=" [0-9]{3}-[0-9]{4}"

Greedy is --temperature=0. Filters apply in the order of `transformers`: bias, penalties, banned; then temperature,
top_k, top_p, min_p, typical_p, epsilon, eta. docs/sampling.md shows what each does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from absl import flags

from launch import choosing, guessing, start, weights

if TYPE_CHECKING:
    from launch.views.terminal import Console
    from model.generate import Sampling
    from train.checkpoint import Restored
    from train.writing import Sample

FLAGS = flags.FLAGS
EARLY_STOPPING: dict[str, bool | Literal["never"]] = {"no": False, "yes": True, "never": "never"}


def define(_: Sequence[str]) -> None:
    """The flags of this program."""
    flags.DEFINE_string("checkpoint", "runs/quickstart", start.CHECKPOINT)
    flags.DEFINE_multi_string(
        "prompt",
        None,
        "The text to continue (by default 'def '), to translate, or to fill in, with <|mask|> for what is missing; "
        "may be given several times.",
    )
    choosing.define()
    weights.define()
    guessing.define()
    flags.DEFINE_multi_string(
        "score",
        [],
        "Write nothing, but tell how probable this text is, token by token, behind --prompt if there is one (for a "
        "translation, behind what it translates); may be given several times.",
    )
    flags.DEFINE_integer("beams", 1, "Beam search: keep so many beginnings of the text; 1 writes without it.")
    flags.DEFINE_float(
        "length_penalty", 1.0, "Beam search compares log-probability / length**this: above 0 favours longer texts."
    )
    flags.DEFINE_enum(
        "early_stopping",
        "no",
        list(EARLY_STOPPING),
        "When beam search ends: yes, as soon as it has as many texts as beams; no, once the best beginning is no "
        "better than they are; never, once it could not become better however long.",
    )
    flags.DEFINE_integer(
        "beam_groups", 1, "Diverse beam search: share the beams out among so many groups, which avoid each other."
    )
    flags.DEFINE_float(
        "diversity",
        0.5,
        "Diverse beam search: what a token's log-probability loses for each beam of the groups before that takes it.",
    )
    flags.DEFINE_integer(
        "contrastive",
        0,
        "Contrastive search: of so many likeliest tokens (5, say), take one that is likely and unlike what was said; 0 "
        "writes without it.",
    )
    flags.DEFINE_float("alpha", 0.6, "Contrastive search: how much likeness to what was said counts, 0 to 1.")
    flags.DEFINE_integer(
        "best_of", 1, "Write so many texts for each prompt and show the likeliest per token (the num_samples best)."
    )
    flags.DEFINE_integer("num_samples", 1, "How many texts to write for each prompt; of beam search, the best ones.")
    flags.DEFINE_integer("max_tokens", 128, "The most tokens to write in each.")
    flags.DEFINE_multi_string("stop", [], "End a text before this string; may be given several times.")
    flags.DEFINE_integer("seed", 0, "Seed of the first sample; each next one has the next seed.")
    flags.DEFINE_integer("table", 0, "After each token, show so many of the likeliest with their probabilities.")
    flags.DEFINE_boolean("json", False, "One JSON object per sample on stdout instead of text.")


def run() -> None:
    """Restore, write, show."""
    check_flags()
    start.prepare_jax()
    choosing.settings()  # Refuses what cannot be.
    restored = weights.restore(FLAGS.checkpoint)
    with weights.shared():
        write_and_show(restored)


def write_and_show(restored: Restored) -> None:
    """What the flags ask for, from a network; raises ConfigError."""
    from configs.derived import fills_in, translates
    from configs.schema import ConfigError
    from launch.scores import print_scores
    from launch.views.terminal import Console
    from model import build

    if fills_in(restored.config):
        print_filled(restored)
        return
    translation = translates(restored.config)
    module = build(restored.config)
    restored = weights.as_asked(restored)
    if FLAGS.score:
        table = min(FLAGS.table, restored.tokenizer.size)
        print_scores(module, restored, FLAGS.score, FLAGS.prompt or [], top=table, as_json=FLAGS.json)
        return
    if translation and not FLAGS.prompt:
        raise ConfigError("--prompt is missing: give it the text to translate.")
    prompts = [prompt for prompt in FLAGS.prompt or ["def "] for _ in range(FLAGS.num_samples)]
    # What is translated stands on a line of its own.
    headings = [f"{prompt}\n" for prompt in prompts] if translation and not FLAGS.table else prompts
    console = None if FLAGS.json else Console(sys.stdout, table=FLAGS.table, prompts=headings)
    if FLAGS.contrastive:
        samples = contrasted_samples(module, restored, prompts, console)
    elif FLAGS.beams > 1:
        samples = beam_samples(module, restored, prompts, console)
    else:
        greedy = translation and FLAGS.best_of == 1
        sampling = choosing.sampling_of(restored.tokenizer, 0.0 if greedy else choosing.USUAL_TEMPERATURE)
        write = best_samples if FLAGS.best_of > 1 else drawn_samples
        samples = write(module, restored, prompts, sampling, console)
    if console:
        console.close()
        return
    for sample in samples:
        print(json.dumps(sample.to_dict()))


def print_filled(restored: Restored) -> None:
    """The prompts with the likeliest token in each gap."""
    from model import build
    from train.filling import fill_in
    from train.writing import harmless

    module = build(restored.config)
    for prompt in FLAGS.prompt or [restored.config.train.sample_prompt]:
        text = fill_in(module, restored.params, restored.tokenizer, prompt)
        print(json.dumps({"prompt": prompt, "text": text}) if FLAGS.json else harmless(text))


def check_flags() -> None:
    """Raises ConfigError for flags that cannot be, or that contradict each other."""
    from configs.schema import ConfigError

    for name, least in (
        ("num_samples", 1),
        ("max_tokens", 1),
        ("table", 0),
        ("beams", 1),
        ("beam_groups", 1),
        ("diversity", 0),
        ("best_of", 1),
        ("contrastive", 0),
    ):
        if getattr(FLAGS, name) < least:
            raise ConfigError(f"--{name}={getattr(FLAGS, name)}: it must be at least {least}.")
    for name in ("length_penalty", "early_stopping", "beam_groups"):
        if FLAGS.beams == 1 and FLAGS[name].present:
            raise ConfigError(f"--{name}={FLAGS[name].value} is for beam search: add --beams=4.")
    if FLAGS.beam_groups == 1 and FLAGS["diversity"].present:
        raise ConfigError(f"--diversity={FLAGS.diversity:g} is for groups of beams: add --beam_groups=2.")
    choosing.check()
    weights.check()
    guessing.check()
    if FLAGS.best_of > 1 and FLAGS.temperature == 0:
        raise ConfigError(f"--best_of={FLAGS.best_of} contradicts --temperature=0: all texts would be the same.")
    if 1 < FLAGS.best_of < FLAGS.num_samples:
        raise ConfigError(
            f"--num_samples={FLAGS.num_samples} is more than the --best_of={FLAGS.best_of} texts that are written."
        )
    if FLAGS.alpha != 0.6 and not FLAGS.contrastive:
        raise ConfigError(f"--alpha={FLAGS.alpha:g} is for contrastive search: add --contrastive=5.")
    for name, is_on in (("beams", FLAGS.beams > 1), ("contrastive", FLAGS.contrastive)):
        contradicting = choosing.present((*choosing.DRAWS, "seed", "best_of")) if is_on else []
        if contradicting:
            raise ConfigError(
                f"{contradicting[0]} contradicts --{name}={getattr(FLAGS, name)}, which draws nothing: leave one of "
                f"them out."
            )
    if FLAGS.contrastive and (FLAGS.beams > 1 or FLAGS.num_samples > 1):
        other = "beams" if FLAGS.beams > 1 else "num_samples"
        raise ConfigError(
            f"--{other}={getattr(FLAGS, other)} contradicts --contrastive={FLAGS.contrastive}, which finds one text."
        )
    if FLAGS.beams > 1 and FLAGS.num_samples > FLAGS.beams:
        raise ConfigError(
            f"--num_samples={FLAGS.num_samples} is more than the --beams={FLAGS.beams} texts that are kept."
        )


def drawn_samples(
    module: Any, restored: Restored, prompts: list[str], sampling: Sampling, console: Console | None, each: int = 0
) -> list[Sample]:
    """Texts drawn token by token, or greedily; each prompt's first (of `each`, or --num_samples) has --seed."""
    from model.generate import Tally
    from train.writing import write

    each = each or FLAGS.num_samples
    tally = Tally()
    samples = write(
        module, restored.params, restored.tokenizer, prompts, sampling,
        max_tokens=FLAGS.max_tokens,
        seeds=[FLAGS.seed + number % each for number in range(len(prompts))],
        stop=FLAGS.stop,
        top=likeliest(restored),
        on_token=console.on_token if console else None,
        grammar=choosing.grammar_of(),
        guess=guessing.guess_of(restored.config),
        tally=tally,
    )  # fmt: skip
    guessing.report(tally)
    return samples


def best_samples(
    module: Any, restored: Restored, prompts: list[str], sampling: Sampling, console: Console | None
) -> list[Sample]:
    """For each prompt the --num_samples likeliest of --best_of texts, by the mean log-probability of their tokens."""
    best, each = [], FLAGS.best_of
    repeated = [prompt for prompt in prompts[:: FLAGS.num_samples] for _ in range(each)]
    written = drawn_samples(module, restored, repeated, sampling, None, each)
    for first in range(0, len(written), each):
        texts = written[first : first + each]
        for text in texts:
            text.score = sum(token.logprob for token in text.tokens) / max(1, len(text.tokens))
        best.extend(sorted(texts, key=lambda text: -(text.score or 0.0))[: FLAGS.num_samples])
    show(best, console)
    return best


def contrasted_samples(module: Any, restored: Restored, prompts: list[str], console: Console | None) -> list[Sample]:
    """The text that contrastive search finds for each prompt."""
    from train.writing import contrast

    samples = contrast(
        module, restored.params, restored.tokenizer, prompts,
        candidates=FLAGS.contrastive, alpha=FLAGS.alpha, max_tokens=FLAGS.max_tokens, stop=FLAGS.stop,
        top=likeliest(restored),
    )  # fmt: skip
    show(samples, console)
    return samples


def beam_samples(module: Any, restored: Restored, prompts: list[str], console: Console | None) -> list[Sample]:
    """The best texts that beam search finds for each prompt."""
    from train.writing import search

    found = search(
        module, restored.params, restored.tokenizer, prompts[:: FLAGS.num_samples],
        beams=FLAGS.beams, max_tokens=FLAGS.max_tokens, length_penalty=FLAGS.length_penalty,
        early_stopping=EARLY_STOPPING[FLAGS.early_stopping], groups=FLAGS.beam_groups,
        diversity=FLAGS.diversity if FLAGS.beam_groups > 1 else 0.0, num_best=FLAGS.num_samples, stop=FLAGS.stop,
        top=likeliest(restored),
    )  # fmt: skip
    samples = [sample for best in found for sample in best]
    show(samples, console)
    return samples


def show(samples: list[Sample], console: Console | None) -> None:
    """Texts that are complete."""
    for row, sample in enumerate(samples if console else []):
        assert console is not None
        for token in sample.tokens:
            console.on_token(row, token, "")
        console.on_token(row, None, sample.text)


def likeliest(restored: Restored) -> int:
    """How many of the likeliest tokens to keep at each place."""
    return min(FLAGS.table or 5, restored.tokenizer.size)


if __name__ == "__main__":
    start.program("launch.sample", __doc__ or "", run, define, sys.argv)
