"""How well a network predicts a given text that may be longer than what it reads at once."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.derived import longest_text
from configs.schema import Config, ConfigError
from model.generate.likelihood import likelihoods
from train.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Perplexity:
    """What texts cost: every token of theirs is predicted once."""

    texts: int
    tokens: int
    text_bytes: int  # Of the text that the tokens give back, UTF-8.
    nats: float  # Minus the natural logarithm of the probability of all of it.
    window: int  # Tokens that the network reads at once, at most.
    stride: int  # Tokens that each window but a text's first predicts: all of them after window - stride others.

    @property
    def perplexity(self) -> float:
        """Of how many equally likely tokens the network would have to choose, on average."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_token(self) -> float:
        """Bits for a token, which depend on the tokenizer."""
        return self.nats / math.log(2) / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits for a byte of the text, which do not."""
        return self.nats / math.log(2) / self.text_bytes

    def to_dict(self) -> dict[str, Any]:
        """As `--json` gives it."""
        rates = ("perplexity", "bits_per_token", "bits_per_byte")
        return {**asdict(self), **{name: getattr(self, name) for name in rates}}


def read_files(patterns: Sequence[str]) -> list[str]:
    """The texts of files.

    Raises:
      ConfigError: a pattern that no file has, or a file that is no UTF-8.
    """
    texts = []
    for pattern in patterns:
        paths = [path for path in sorted(glob.glob(pattern, recursive=True)) if Path(path).is_file()]
        if not paths:
            raise ConfigError(f"--files={pattern}: there is no such file.")
        for path in paths:
            try:
                texts.append(Path(path).read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                raise ConfigError(f"--files={pattern}: {path} is no UTF-8 text.") from None
    return texts


def windows(
    tokens: Sequence[int], first: Sequence[int], window: int, stride: int
) -> Iterator[tuple[list[int], list[int]]]:
    """(context, what is predicted) of a text's windows: together they predict each token once.

    A window and its context have at most `window` tokens that are read; the last token predicted is not read.
    """
    whole = [*first, *tokens]
    place = len(first)
    while place < len(whole):
        end = min(len(whole), window + 1 if place == len(first) else place + stride)
        yield whole[max(0, end - 1 - window) : place], whole[place:end]
        place = end


def perplexity(
    module: Any,
    params: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    window: int,
    stride: int,
    on_done: Callable[[int, int], object] = lambda done, total: None,
) -> Perplexity:
    """What the network gives texts that are whole documents, each by sliding windows.

    Args:
      window: the most tokens that are read at once.
      stride: how far each window is moved on.
      on_done: called with how many windows have been read, and how many there are.

    Raises:
      ConfigError: no text; sizes that cannot be; a network that does not continue texts.
    """
    check_window(module.config, window, stride)
    encoded = [tokenizer.encode(text) for text in texts]
    pairs = [pair for tokens in encoded for pair in windows(tokens, tokenizer.beginning, window, stride)]
    if not pairs:
        raise ConfigError("--files: there is no text in them.")
    nats = -math.fsum(likelihood.logprob for likelihood in likelihoods(module, params, pairs, on_done))
    lengths = [int(tokenizer.byte_lengths[token]) for tokens in encoded for token in tokens]
    return Perplexity(len(texts), len(lengths), sum(lengths), nats, window, stride)


def check_window(config: Config, window: int, stride: int) -> None:
    """Raises ConfigError for windows that cannot be."""
    if not 1 <= stride <= window or window < 2:
        raise ConfigError(f"--window={window} with --stride={stride}: the stride must be from 1 to the window.")
    longest = longest_text(config)
    if longest is not None and window > longest:
        raise ConfigError(f"--window={window} is more than the {longest} rows of the network's position table.")
