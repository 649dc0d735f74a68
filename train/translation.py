"""How good translations are, and what the simplest ones reach: copying the source, and a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.data.sections import Corpus, Section
from train.data.tokenizer import Tokenizer

# A dictionary is learnt from at most so many places where a source and a target token stand in the same pair.
MAX_LINKS = 8_000_000
EM_ITERATIONS = 5


def score(hypotheses: Sequence[str], references: Sequence[str], languages: tuple[str, str]) -> dict[str, Any]:
    """Corpus BLEU (Papineni et al. 2002) and chrF2 (Popović 2015) by sacreBLEU (Post 2018), from 0 to 100.

    Returns:
      `bleu` and `chrf`, and their signatures, which say how they were computed: `bleu_signature`, `chrf_signature`.
      Chinese is split into characters for BLEU (tokenize=zh), all other languages by WMT's rules (13a).

    Raises:
      ValueError: there are not as many hypotheses as references, or none.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses)} hypotheses cannot be compared with {len(references)} references")
    result: dict[str, Any] = {}
    words = "zh" if languages[1].startswith("zh") else "13a"
    for name, metric in (("bleu", BLEU(tokenize=words)), ("chrf", CHRF())):
        result[name] = metric.corpus_score(list(hypotheses), [list(references)]).score
        result[f"{name}_signature"] = str(metric.get_signature())
    return result


def held_out_pairs(corpus: Corpus, count: int) -> list[Section]:
    """`count` of the held-out pairs, or all if there are fewer: always the same ones, evenly spread."""
    numbers = np.unique(np.linspace(0, len(corpus.held_out) - 1, min(count, len(corpus.held_out))).astype(int))
    pairs = [corpus.held_out[int(number)] for number in numbers]
    return [pair for pair in pairs if pair.source and pair.text]


def baselines(
    corpus: Corpus, tokenizer: Tokenizer, pairs: Sequence[Section], languages: tuple[str, str]
) -> dict[str, dict[str, Any]]:
    """Scores of simple translations of `pairs`: `copy` of the source, and `dictionary`, token by token."""
    sources = [pair.source for pair in pairs]
    dictionary = Dictionary.train(corpus, tokenizer)
    hypotheses = {"copy": sources, "dictionary": dictionary.translate(sources)}
    references = [pair.text for pair in pairs]
    return {name: score(texts, references, languages) for name, texts in hypotheses.items()}


@dataclass(frozen=True)
class Dictionary:
    """One target token for each source token: the likeliest one by IBM Model 1 (Brown et al. 1993, section 4.1).

    The model takes each target token to stem from one of the source's tokens, or from none (here: from the end of
    text), whatever their order, and learns by expectation maximization which comes from which.

    Attributes:
      best_V: int32, the target token that each source token makes likeliest; itself if it was never seen.
    """

    tokenizer: Tokenizer
    best_V: np.ndarray

    @staticmethod
    def train(corpus: Corpus, tokenizer: Tokenizer) -> Dictionary:
        """Learns from the training pairs, or from evenly spread ones if they have more than MAX_LINKS links."""
        probability_U, source_U, target_U = model_1(_token_pairs(corpus, tokenizer), tokenizer.size)
        best_V = np.arange(tokenizer.size, dtype=np.int32)
        order_U = np.argsort(probability_U, kind="stable")
        best_V[source_U[order_U]] = target_U[order_U]  # the last one written, so the likeliest, stays
        return Dictionary(tokenizer, best_V)

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Translates each token by itself, in the order of the source."""
        tokens = [np.array(self.tokenizer.encode(text), np.int64) for text in texts]
        return [self.tokenizer.decode(self.best_V[ids_S].tolist()).strip() for ids_S in tokens]


def _token_pairs(corpus: Corpus, tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    """Evenly spread training pairs as tokens, a source with the end of text before it."""
    numbers = np.unique(np.linspace(0, len(corpus.train) - 1, 50_000).astype(int))
    pairs = [corpus.train[int(number)] for number in numbers]
    sources, targets = (
        tokenizer.encode_all(texts) for texts in ([pair.source for pair in pairs], [pair.text for pair in pairs])
    )
    tokens = [([tokenizer.end_of_text, *s], t) for s, t in zip(sources, targets, strict=True) if s and t]
    links = sum(len(source) * len(target) for source, target in tokens)
    return tokens[:: max(1, -(-links // MAX_LINKS))]


def model_1(pairs: list[tuple[list[int], list[int]]], vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IBM Model 1: the probability of a target token given the source token that it stems from.

    Args:
      pairs: the tokens of each source and target; a source has what stands for "from none of them" among its own.
      vocab_size: all tokens are smaller.

    Returns:
      [U] float64 probabilities, and the [U] int64 source and target tokens that they belong to: all that stand in the
      same pair anywhere. They add up to 1 for each source token.
    """
    keys, places, place = [], [], 0
    for source, target in pairs:
        keys.append((np.array(source, np.int64)[:, None] * vocab_size + np.array(target, np.int64)[None, :]).ravel())
        places.append(np.tile(np.arange(place, place + len(target), dtype=np.int32), len(source)))
        place += len(target)
    keys_U, link_L = np.unique(np.concatenate(keys), return_inverse=True)
    place_L = np.concatenate(places)
    source_U, target_U = np.divmod(keys_U, vocab_size)
    probability_U = np.ones(len(keys_U))
    for _ in range(EM_ITERATIONS):
        weight_L = probability_U[link_L]
        weight_L /= np.bincount(place_L, weight_L)[place_L]  # which source token made this target token?
        count_U = np.bincount(link_L, weight_L)
        probability_U = count_U / np.bincount(source_U, count_U)[source_U]
    return probability_U, source_U, target_U
