"""Learning from examples in the prompt (Brown et al. 2020, section 1): accuracy against their number.

A question is right if each token of its answer is the network's likeliest, given the examples, the question and the
answer's tokens so far: what greedy decoding would write.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from configs.schema import ConfigError
from model.generate.likelihood import likelihoods
from train.data.tokenizer import Tokenizer
from train.word_lists import ANTONYMS, CAPITALS, FRENCH, pairs

CONFIDENCE = 0.95


def _sums(generator: random.Random) -> list[tuple[str, str]]:
    """All sums of two numbers from 1 to 30, in a random order."""
    numbers = [(a, b) for a in range(1, 31) for b in range(1, 31)]
    generator.shuffle(numbers)
    return [(f"{a} + {b}", str(a + b)) for a, b in numbers]


def _shuffled(lines: str) -> Callable[[random.Random], list[tuple[str, str]]]:
    def questions(generator: random.Random) -> list[tuple[str, str]]:
        listed = pairs(lines)
        generator.shuffle(listed)
        return listed

    return questions


# name -> (what stands between question and answer, questions with answers in an order that the generator draws)
TASKS: dict[str, tuple[str, Callable[[random.Random], list[tuple[str, str]]]]] = {
    "capitals": (" ->", _shuffled(CAPITALS)),
    "french": (" ->", _shuffled(FRENCH)),
    "antonyms": (" ->", _shuffled(ANTONYMS)),
    "sums": (" =", _sums),
}


@dataclass(frozen=True)
class Accuracy:
    """How many questions of a task were answered right with so many examples, over all draws."""

    task: str
    shots: int
    right: int
    asked: int
    by_draw: tuple[float, ...]  # Accuracy with each draw of examples and questions.
    logprob: float  # Natural logarithm of the right answer's probability, on average.

    @property
    def accuracy(self) -> float:
        """The share that was right."""
        return self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """Exact binomial 95% interval (Clopper and Pearson 1934) of the share, answers taken as independent."""
        from scipy.stats import binomtest

        low, high = binomtest(self.right, self.asked).proportion_ci(CONFIDENCE, method="exact")
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """As `--json` gives it."""
        low, high = self.interval
        return {**dataclasses.asdict(self), "accuracy": self.accuracy, "low": low, "high": high}


def prompt_of(task: str, examples: Sequence[tuple[str, str]], question: str) -> str:
    """The examples, one a line, and the question in the same form."""
    between = TASKS[task][0]
    return "".join(f"{asked}{between} {answer}\n" for asked, answer in examples) + question + between


def shot_curves(
    module: Any,
    params: Any,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    shots: Sequence[int],
    *,
    draws: int,
    questions: int,
    seed: int,
    on_done: Callable[[int, int], object] = lambda done, total: None,
) -> list[Accuracy]:
    """Accuracy in each of TASKS with each number of examples.

    A draw is an order of the task's pairs: the first `questions` are asked whatever the number of examples, which are
    taken from behind them, so that curves differ by the examples alone.

    Args:
      draws: how often examples and questions are drawn.
      seed: of the first draw.
      on_done: called with how many questions have been answered, and how many there are.

    Raises:
      ConfigError: a task that has too few pairs.
    """
    asked: list[tuple[str, int, int]] = []
    texts: list[tuple[str, str]] = []
    for task in tasks:
        for draw in range(draws):
            listed = TASKS[task][1](random.Random(f"{seed + draw} {task}"))
            if len(listed) < questions + max(shots):
                raise ConfigError(
                    f"--questions={questions} with {max(shots)} of --shots needs more pairs than the {len(listed)} of "
                    f"{task}: ask for fewer."
                )
            for count in shots:
                examples = listed[questions : questions + count]
                for question, answer in listed[:questions]:
                    asked.append((task, count, draw))
                    texts.append((prompt_of(task, examples, question), f" {answer}"))
    encoded = [continuation_of(tokenizer, context, answer) for context, answer in texts]
    found = likelihoods(module, params, encoded, on_done)
    results = []
    for task in tasks:
        for count in shots:
            answers = [
                [one for one, at in zip(found, asked, strict=True) if at == (task, count, draw)]
                for draw in range(draws)
            ]
            by_draw = tuple(sum(one.greedy for one in some) / questions for some in answers)
            every = [one for some in answers for one in some]
            mean = sum(one.logprob for one in every) / len(every)
            results.append(Accuracy(task, count, sum(one.greedy for one in every), len(every), by_draw, mean))
    return results


def continuation_of(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """A text as the network reads it, parted behind its context; an empty context is what texts begin with.

    Tokens are those of the whole text. Spaces at the end of the context go to the continuation, whose first token
    begins with them.
    """
    kept = context.rstrip()
    if not kept:
        return list(tokenizer.beginning), tokenizer.encode(context + continuation)
    before = tokenizer.prompt(kept)
    return before, tokenizer.prompt(context + continuation)[len(before) :]
