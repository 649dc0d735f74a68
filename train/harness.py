"""A network of ours as a model of EleutherAI's lm-eval: `lm_eval.simple_evaluate(LanguageModel(...), tasks=...)`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, cast

from lm_eval.api.instance import Instance  # type: ignore[import-not-found]
from lm_eval.api.model import LM  # type: ignore[import-not-found]
from lm_eval.evaluator import simple_evaluate  # type: ignore[import-not-found]
from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

from configs.schema import ConfigError
from model.generate import Sampling
from model.generate.engine import Engine
from model.generate.likelihood import likelihoods
from model.generate.requests import Request
from train.checkpoint import Restored
from train.fewshot import continuation_of
from train.perplexity import windows
from train.writing import Chosen, Row

SLOTS = 8  # Texts that are written at once.
MAX_TOKENS = 256  # What is written where a task does not say how much.
Done = Callable[[str, int, int], object]


class LanguageModel(LM):
    """A network that continues texts, as lm-eval asks for one. Beginnings that prompts share are read once."""

    def __init__(
        self, module: Any, restored: Restored, max_length: int, on_done: Done = lambda what, done, total: None
    ) -> None:
        """Wraps a network.

        Args:
          max_length: the most tokens that are read at once; of longer texts the beginning is left out.
          on_done: called as on_done(what is asked, how many are done, how many there are).
        """
        super().__init__()
        self.module, self.params, self.tokenizer = module, restored.params, restored.tokenizer
        self.max_length, self.on_done = max_length, on_done

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding writes it) of each request's continuation after its context."""
        pairs = [continuation_of(self.tokenizer, *request.args) for request in requests]
        found = self._likelihoods("loglikelihood", [self._cut(*pair) for pair in pairs])
        return [(likelihood.logprob, likelihood.greedy) for likelihood in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-probability of each text, read in windows that share one token with the one before."""
        parts: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            tokens = self.tokenizer.encode(request.args[0])
            of_text = list(windows(tokens, self.tokenizer.beginning, self.max_length, self.max_length))
            parts += of_text
            owners += [owner] * len(of_text)
        totals = [0.0] * len(requests)
        for owner, likelihood in zip(owners, self._likelihoods("loglikelihood_rolling", parts), strict=True):
            totals[owner] += likelihood.logprob
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What the network writes after each prompt, up to the first of its stop strings."""
        asked = [self._asked(seed, *request.args) for seed, request in enumerate(requests)]
        if not asked:
            return []
        engine = Engine(
            self.module, self.params, slots=min(SLOTS, len(asked)),
            length=max(len(request.tokens) + request.max_tokens for request, _ in asked), top=0,
        )  # fmt: skip
        # Prompts with the same beginning stand side by side, so that it is still kept when the next one comes.
        order = sorted(range(len(asked)), key=lambda index: asked[index][0].tokens)
        rows = {engine.submit(asked[index][0]): (index, asked[index][1]) for index in order}
        texts: list[str | None] = [None] * len(asked)
        done = 0
        while engine.busy:
            for event in engine.step():
                index, row = rows[event.ticket]
                for token in event.tokens:
                    if not row.finished:
                        chosen = Chosen(token.id, self.tokenizer.token_text(token.id), token.logprob)
                        row.add(chosen, row.read(self.tokenizer, token.id), is_end=bool(token.finish))
                if row.finished and texts[index] is None:
                    engine.cancel(event.ticket)
                    texts[index] = row.sample.text
                    done += 1
                    self.on_done("generate_until", done, len(asked))
        return [text or "" for text in texts]

    def _likelihoods(self, what: str, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Any]:
        return likelihoods(self.module, self.params, pairs, lambda done, total: self.on_done(what, done, total))

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """What is read of a text that is too long: its end; of the continuation the last token is not read."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise ConfigError(
                f"A continuation has {len(continuation)} tokens: --window={self.max_length} does not hold them."
            )
        return context[-room:], continuation

    def _asked(self, seed: int, context: str, settings: dict[str, Any]) -> tuple[Request, Row]:
        """What the engine is asked for, and the text as it grows."""
        settings = dict(settings)
        until = settings.pop("until", None) or []
        stop = [until] if isinstance(until, str) else list(until)
        max_tokens = int(settings.pop("max_gen_toks", MAX_TOKENS))
        draws = bool(settings.pop("do_sample", settings.get("temperature", 0)))
        temperature = float(settings.pop("temperature", 1.0 if draws else 0.0)) if draws else 0.0
        settings.pop("temperature", None)
        sampling = Sampling(
            temperature=temperature, top_k=int(settings.pop("top_k", 0)), top_p=float(settings.pop("top_p", 1.0))
        )
        if settings:
            raise ConfigError(
                f"The task's generation_kwargs {', '.join(settings)} are not known: until, max_gen_toks, do_sample, "
                f"temperature, top_k and top_p are."
            )
        if max_tokens >= self.max_length:
            raise ConfigError(f"max_gen_toks={max_tokens} leaves no room for a prompt in --window={self.max_length}.")
        tokens = self.tokenizer.prompt(context)[max_tokens - self.max_length :]
        request = Request(tuple(tokens), sampling, max_tokens, seed, self.tokenizer.ends)
        return request, Row(context, stop, begins=not context)


def evaluate(
    network: LanguageModel,
    tasks: Sequence[str],
    shots: int,
    *,
    include_path: str = "",
    limit: int | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What lm-eval finds with `shots` examples in each prompt: a dictionary for each task and metric.

    Args:
      include_path: a folder with task files; the tasks that lm-eval brings are looked at only for what is not there.
      limit: how many questions of each task to ask; None asks all.
      seed: of the choice of examples.

    Raises:
      ConfigError: a task that is not there.
    """
    manager = TaskManager(include_path=include_path or None, include_defaults=not include_path)
    if missing := [name for name in tasks if name not in manager.all_tasks]:
        manager = TaskManager(include_path=include_path or None)
        if missing := [name for name in missing if name not in manager.all_tasks]:
            near = difflib.get_close_matches(missing[0], manager.all_tasks, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"--tasks={missing[0]}: lm-eval knows no such task{hint}")
    found = cast(Any, simple_evaluate)(
        network, tasks=list(tasks), num_fewshot=shots, task_manager=manager, limit=limit, fewshot_random_seed=seed,
        log_samples=False,
    )  # fmt: skip
    results = []
    for task, values in found["results"].items():
        for name, value in values.items():
            metric, comma, filtered = name.partition(",")
            if comma and not metric.endswith("_stderr"):
                error = values.get(f"{metric}_stderr,{filtered}")
                results.append({
                    "task": task, "shots": shots, "metric": metric, "filter": filtered, "value": value,
                    "stderr": error if isinstance(error, float) else None,
                })  # fmt: skip
    return results
