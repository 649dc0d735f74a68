"""Text written by a network, with the probabilities behind each of its tokens."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from configs.derived import translates
from configs.schema import Config, ConfigError
from model.generate import (
    Draft,
    Grammar,
    Grammars,
    Lookup,
    Sampling,
    Tally,
    beam_search,
    contrastive_search,
    generate,
    speculate,
)  # fmt: skip
from model.generate.decode import bucket
from train.data.tokenizer import Tokenizer
from train.scoring import Chosen, Token, given_tokens, named


@dataclass
class Sample:
    """What was written after a prompt; `text` ends before a stop string, and leaves out a character begun last."""

    prompt: str
    text: str = ""
    tokens: list[Chosen] = field(default_factory=list)
    score: float | None = None  # What a beam search compared it by.

    def to_dict(self) -> dict[str, Any]:
        """The sample as `--json` gives it."""
        tokens = [token.to_dict() for token in self.tokens]
        score = {} if self.score is None else {"score": self.score}
        return {"prompt": self.prompt, "text": self.text, **score, "tokens": tokens}


class Row:
    """One sample as it grows: bytes to text, and text up to a stop string."""

    def __init__(self, prompt: str, stop: Sequence[str], begins: bool) -> None:
        self.sample = Sample(prompt)
        self.begins = begins  # Whether no text is before what comes next, neither the prompt's nor its own.
        self.stop = [string for string in stop if string]
        self.finished = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown = 0

    def add(self, token: Chosen, text_bytes: bytes, is_end: bool) -> str:
        """Take one more token in; return the text that is now certain to stay."""
        self.sample.tokens.append(token)
        self.sample.text += self._decoder.decode(text_bytes)
        found = [at for at in (self.sample.text.find(string) for string in self.stop) if at >= 0]
        if found:
            self.sample.text = self.sample.text[: min(found)]
        self.finished = is_end or bool(found)
        return self._news(len(self.sample.text) if self.finished else len(self.sample.text) - self._held_back())

    def read(self, tokenizer: Tokenizer, id: int) -> bytes:
        """The bytes of the next token, at its place."""
        text_bytes = tokenizer.token_bytes(id, first=self.begins)
        self.begins = self.begins and not tokenizer.token_bytes(id)
        return text_bytes

    def close(self) -> str:
        """No more tokens will come; return the text that was held back."""
        self.finished = True
        return self._news(len(self.sample.text))

    def _news(self, upto: int) -> str:
        news = self.sample.text[self._shown : upto]
        self._shown = max(self._shown, upto)
        return news

    def _held_back(self) -> int:
        """Length of the longest end of the text that a stop string could begin with."""
        longest = max((len(string) for string in self.stop), default=1) - 1
        for length in range(min(longest, len(self.sample.text)), 0, -1):
            if any(string.startswith(self.sample.text[-length:]) for string in self.stop):
                return length
        return 0


def write(
    module: Any,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    max_tokens: int,
    seeds: Sequence[int],
    stop: Sequence[str] = (),
    top: int = 0,
    on_token: Callable[[int, Chosen | None, str], None] | None = None,
    grammar: Grammar | None = None,
    guess: Lookup | Draft | None = None,
    tally: Tally | None = None,
) -> list[Sample]:
    """Continue each prompt until the text ends, a stop string appears, or `max_tokens` are written.

    Args:
      prompts: texts; each is read as the beginning of a document, or translated by a network that does that.
      seeds: one per prompt; a sample depends on its own prompt and seed only.
      top: how many of the likeliest tokens to keep at each place.
      on_token: called with (row, token, text that became certain) as soon as a token is there; with None for a token
        where a text ends with more than its last token brought.
      grammar: what each text has to be.
      guess: what guesses tokens ahead; the texts are the same, or for drawn ones as likely, as without.
      tally: is filled in with what became of the guesses.

    Raises:
      ConfigError: a grammar that is wrong, or without the package that reads it.
    """
    rows = [Row(prompt, stop, begins=not prompt or translates(module.config)) for prompt in prompts]
    tell = on_token or (lambda row, token, text: None)
    prompt_ids, sources = reads(module.config, tokenizer, prompts)
    settings = {"max_tokens": max_tokens, "seeds": seeds, "ends": tokenizer.ends, "top": top, "sources": sources}
    if grammar is not None:
        grammars = grammars_of(tokenizer, module.config)
        settings["matchers"] = [grammars.matcher(grammar) for _ in prompts]
    write_on: Any = generate
    if guess is not None:
        if grammar is not None:
            raise ConfigError("Tokens cannot be guessed ahead where a grammar says what may come.")
        write_on = partial(speculate, guess=guess, tally=tally)
        del settings["sources"]  # A network that has some is refused.
    for chunk in write_on(module, params, prompt_ids, sampling, **settings):
        for index, row in enumerate(rows):
            for place in range(chunk.tokens_BC.shape[1]):
                if row.finished:
                    break
                likeliest = zip(chunk.top_tokens_BCK[index, place], chunk.top_logprobs_BCK[index, place], strict=True)
                chosen = Chosen(
                    *named(tokenizer, chunk.tokens_BC[index, place], chunk.logprobs_BC[index, place]),
                    top=tuple(Token(*named(tokenizer, id, logprob)) for id, logprob in likeliest),
                )
                tell(index, chosen, row.add(chosen, row.read(tokenizer, chosen.id), chosen.id in tokenizer.ends))
        if all(row.finished for row in rows):
            break
    for index, row in enumerate(rows):
        rest = row.close()
        if rest:
            tell(index, None, rest)
    return [row.sample for row in rows]


def grammars_of(tokenizer: Tokenizer, config: Config) -> Grammars:
    """What makes matchers of grammars for a tokenizer, and the network that writes with it.

    Raises:
      ConfigError: without the package that reads grammars.
    """
    pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.size)]
    return Grammars(pieces, tokenizer.ends, config.tokenizer.vocab_size)


def reads(config: Config, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int]] | None]:
    """The tokens that a network begins with for each text, and those that it translates (None if it doesn't)."""
    if not translates(config):
        return [tokenizer.prompt(text) for text in texts], None
    return [[tokenizer.start_of_target] for _ in texts], [tokenizer.source(text) for text in texts]


def search(
    module: Any,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    beams: int,
    max_tokens: int,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    groups: int = 1,
    diversity: float = 0.0,
    num_best: int = 1,
    stop: Sequence[str] = (),
    top: int = 0,
) -> list[list[Sample]]:
    """The `num_best` best continuations or translations of each prompt that beam search finds, best first.

    The arguments are those of `write` and of `beam_search`.
    """
    prompt_ids, sources = reads(module.config, tokenizer, prompts)
    found = beam_search(
        module, params, prompt_ids,
        beams=beams, max_tokens=max_tokens, ends=tokenizer.ends, length_penalty=length_penalty,
        early_stopping=early_stopping, sources=sources, num_best=num_best, groups=groups, diversity=diversity,
    )  # fmt: skip
    results: list[list[Sample]] = []
    for index, (prompt, hypotheses) in enumerate(zip(prompts, found, strict=True)):
        source = None if sources is None else sources[index]
        results.append([])
        for hypothesis in hypotheses:
            read = prompt_ids[index], hypothesis.tokens, source
            sample = _sample_of(module, params, tokenizer, prompt, *read, stop=stop, top=top)
            sample.score = hypothesis.score
            results[-1].append(sample)
    return results


def contrast(
    module: Any,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    candidates: int,
    alpha: float,
    max_tokens: int,
    stop: Sequence[str] = (),
    top: int = 0,
) -> list[Sample]:
    """What contrastive search writes after each prompt; the arguments are those of `write` and `contrastive_search`."""
    prompt_ids, _ = reads(module.config, tokenizer, prompts)
    found = contrastive_search(
        module, params, prompt_ids, candidates=candidates, alpha=alpha, max_tokens=max_tokens, ends=tokenizer.ends
    )
    return [
        _sample_of(module, params, tokenizer, prompt, ids, tokens, None, stop=stop, top=top)
        for prompt, ids, tokens in zip(prompts, prompt_ids, found, strict=True)
    ]


def _sample_of(
    module: Any,
    params: Any,
    tokenizer: Tokenizer,
    prompt: str,
    prompt_ids: list[int],
    written: list[int],
    source: list[int] | None,
    *,
    stop: Sequence[str],
    top: int,
) -> Sample:
    """The text of tokens that were found after a prompt."""
    row = Row(prompt, stop, begins=not prompt or source is not None)
    for chosen in given_tokens(module, params, tokenizer, prompt_ids, written, source, top):
        if not row.finished:
            row.add(chosen, row.read(tokenizer, chosen.id), chosen.id in tokenizer.ends)
    row.close()
    return row.sample


def translate(
    module: Any,
    params: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    max_tokens: int,
    beams: int = 1,
    sampling: Sampling | None = None,
    length_penalty: float = 1.0,
    batch: int = 64,
) -> list[str]:
    """The translation of each text, by beam search, or with one beam greedily or as `sampling` says.

    Args:
      max_tokens: the most tokens to write for each; twice as many as the longest source of a batch has, rounded up to
        a multiple of 32, are enough.
      sampling: as of `write`; text number n draws with the seed n.
      batch: texts translated at once; with beam search, as many beams.

    Raises:
      ConfigError: beams and sampling, or a source longer than a learned position table.
    """
    settings = {"max_tokens": max_tokens, "beams": beams, "sampling": sampling, "length_penalty": length_penalty}
    translations = [""] * len(texts)
    for index, text in translate_each(module, params, tokenizer, texts, batch=batch, **settings):
        translations[index] = text
    return translations


def translate_each(
    module: Any,
    params: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    max_tokens: int,
    beams: int = 1,
    sampling: Sampling | None = None,
    length_penalty: float = 1.0,
    batch: int = 64,
) -> Iterator[tuple[int, str]]:
    """(number of a text, its translation) as they are done, the shortest texts first; the arguments of `translate`."""
    if beams > 1 and sampling is not None and sampling.temperature:
        raise ConfigError(
            f"--beams={beams} contradicts --temperature={sampling.temperature:g}: beam search does not draw."
        )
    starts, sources = reads(module.config, tokenizer, texts)
    if sources is None:
        raise ConfigError(f"--model.network={module.config.model.network} does not translate.")
    order = sorted(range(len(texts)), key=lambda index: len(sources[index]))
    rows = max(1, min(batch // beams, len(texts)))
    for first in range(0, len(texts), rows):
        chosen = order[first : first + rows]
        # The last batch is filled up, so that nothing is compiled for its size.
        filled = [*chosen, *[chosen[0]] * (rows - len(chosen))]
        of_batch = [sources[index] for index in filled]
        # Rounded as sources are padded, so that each length of those is compiled once.
        room = min(max_tokens, 2 * bucket(max(map(len, of_batch))))
        prompts = [starts[index] for index in filled]
        if beams > 1:
            found = beam_search(
                module, params, prompts, beams=beams, max_tokens=room, ends=tokenizer.ends,
                length_penalty=length_penalty, sources=of_batch,
            )  # fmt: skip
            written = [hypotheses[0].tokens for hypotheses in found]
        else:
            chunks = generate(
                module, params, prompts, sampling or Sampling(temperature=0), max_tokens=room, seeds=filled,
                ends=tokenizer.ends, sources=of_batch,
            )  # fmt: skip
            written = np.concatenate([chunk.tokens_BC for chunk in chunks], axis=1).tolist()
        for index, tokens in zip(chosen, written, strict=False):
            yield index, tokenizer.decode(_up_to_the_end(tokens, tokenizer))


def _up_to_the_end(tokens: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The tokens before the first one that ends a text."""
    place = next((place for place, token in enumerate(tokens) if token in tokenizer.ends), len(tokens))
    return list(tokens[:place])


def harmless(text: str) -> str:
    """Text without the control characters that would move a terminal's cursor or change its state, as escapes."""
    kept = (c if c in "\n\t" or unicodedata.category(c) != "Cc" else c.encode("unicode_escape").decode() for c in text)
    return "".join(kept)
