"""The models that the network must beat are proper distributions, correctly counted."""

from __future__ import annotations

import lzma
from collections import Counter, defaultdict

import numpy as np
import pytest

from configs import schema
from train.baselines import KneserNey, baselines
from train.data.sections import Corpus, Section
from train.data.tokenizer import make_tokenizer

VOCAB = 7


def random_sections(seed: int, count: int, length: int) -> list[np.ndarray]:
    """Sections of a skewed distribution with some memory, each starting with token 0."""
    generator = np.random.default_rng(seed)
    sections = []
    for _ in range(count):
        tokens = [0]
        for _ in range(generator.integers(0, length)):
            tokens.append(int((tokens[-1] + generator.geometric(0.5)) % (VOCAB - 1)))  # the last token is never seen
        sections.append(np.array(tokens, np.int32))
    return sections


def reference(sections: list[np.ndarray], order: int, context: tuple[int, ...], token: int) -> float:
    """Interpolated modified Kneser-Ney by the book, with dictionaries (Chen & Goodman 1998, equations 26 and 27)."""
    if order == 0:
        return 1 / VOCAB
    top = len(context) + 1
    counts: Counter[tuple[int, ...]] = Counter()
    for tokens in sections:
        padded = [int(tokens[0])] * (top - 1) + [int(t) for t in tokens[1:]]
        counts.update(tuple(padded[i : i + top]) for i in range(len(padded) - top + 1))
    for length in range(top - 1, order - 1, -1):
        before = defaultdict(set)
        for gram in counts:
            before[gram[1:]].add(gram[0])
        counts = Counter({gram: len(words) for gram, words in before.items()})
        assert all(len(gram) == length for gram in counts)
    n1, n2, n3, n4 = (sum(c == n for c in counts.values()) for n in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 else 0
    raw = [1 - 2 * y * n2 / n1 if n1 else 0, 2 - 3 * y * n3 / n2 if n2 else 0, 3 - 4 * y * n4 / n3 if n3 else 0]
    discounts = [0.0, *(d if 0 < d < n else 0.5 for n, d in zip((1, 2, 3), raw, strict=True))]
    short = context[len(context) - order + 1 :]
    seen = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == short}
    lower = reference(sections, order - 1, context, token)
    if not seen:
        return lower
    total = sum(seen.values())
    freed = sum(discounts[min(count, 3)] for count in seen.values())
    kept = seen[token] - discounts[min(seen[token], 3)] if token in seen else 0
    return kept / total + freed / total * lower


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("count", [2, 60])
def test_kneser_ney_is_as_in_the_book_and_sums_to_one(order, count):
    sections = random_sections(seed=count, count=count, length=12)
    model = KneserNey.train(sections, order, VOCAB)
    contexts = [()] if order == 1 else [(a,) for a in range(VOCAB)] if order == 2 else [(0, 0), (1, 2), (6, 6), (3, 5)]
    for context in contexts:
        number = sum(token * VOCAB**place for place, token in enumerate(reversed(context), start=1))
        probabilities = model.probability(number + np.arange(VOCAB))
        assert probabilities.sum() == pytest.approx(1)
        expected = [reference(sections, order, context, token) for token in range(VOCAB)]
        np.testing.assert_allclose(probabilities, expected, rtol=1e-12)


def test_every_token_but_the_first_of_a_section_is_predicted_from_those_before_it():
    model = KneserNey.train(random_sections(0, 50, 12), 3, VOCAB)
    found = model.log2_probability([np.array([0, 4, 5]), np.array([0]), np.array([0, 1])])
    grams = [(0, 0, 4), (0, 4, 5), (0, 0, 1)]
    expected = np.log2(model.probability(np.array([(a * VOCAB + b) * VOCAB + c for a, b, c in grams])))
    np.testing.assert_array_equal(found, expected)


def test_longer_contexts_help_on_text_with_memory():
    train, held_out = random_sections(1, 500, 40), random_sections(2, 100, 40)
    bits = [-KneserNey.train(train, order, VOCAB).log2_probability(held_out).mean() for order in (1, 2, 3)]
    assert bits[0] > bits[1] + 0.2
    assert bits[2] < bits[1] + 0.02  # the text's memory is one token long
    assert bits[1] == pytest.approx(2, abs=0.15)  # entropy of the geometric distribution with p = 1/2


def test_bits_per_byte_count_the_held_out_text_and_its_ends():
    train = [Section("the cat sat on the mat\n" * 3, False), Section("the dog\n", True)]
    held_out = [Section("the cat ", False), Section("größer\n", True)]
    corpus = Corpus(train, held_out, "", "")  # type: ignore[arg-type]
    tokenizer = make_tokenizer(schema.Tokenizer(source="bytes"), corpus)
    result = baselines(corpus, tokenizer)
    data = "the cat größer\n".encode()
    sequences = [[[256, *s.text.encode(), *[256] * s.last] for s in part] for part in (train, held_out)]
    arrays = [[np.array(tokens) for tokens in part] for part in sequences]
    for order, name in enumerate(("unigram", "bigram", "trigram"), start=1):
        bits = -KneserNey.train(arrays[0], order, 257).log2_probability(arrays[1])
        assert len(bits) == len(data) + 1  # and one end of text
        assert result[name] == pytest.approx(bits.sum() / len(data))
    assert result["xz"] == 8 * len(lzma.compress(data, preset=9)) / len(data)
