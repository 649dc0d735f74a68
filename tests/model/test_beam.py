"""Beam search finds what a search without compiling, cache or batches finds, with the probabilities of the network."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from tiny import random_params, random_tokens, tiny

from configs.convert import override
from configs.derived import translates
from configs.schema import ConfigError
from model import Source, build
from model.generate import Sampling, beam_search, generate

VOCABULARY = 8  # So few that texts end now and then.
# At full scale these networks are so sure that all beams agree.
NETWORKS = {
    "rope": {"logit_scale": 0.2},
    "learned, window": {"position": "learned", "max_length": 24, "window": 3, "logit_scale": 0.2},
    "encoder-decoder": {"network": "encoder_decoder", "position": "relative", "logit_scale": 0.2},
    "lstm encoder-decoder": {"network": "lstm_encoder_decoder", "logit_scale": 0.5},
}
PROMPTS = [(random_tokens(length, seed=length) % VOCABULARY).tolist() for length in (2, 7, 4)]
SOURCES = [(random_tokens(length, seed=10 + length) % VOCABULARY).tolist() for length in (6, 3, 9)]
ROOM = 24  # Tokens of the longest text that the full pass is run on.
END = 3


class Network:
    """A random network, and the log-probabilities that its full pass gives, in float64."""

    def __init__(self, vocabulary: int = VOCABULARY, **settings) -> None:
        self.module = build(override(tiny(**settings), {"tokenizer.vocab_size": vocabulary}))
        self.params = random_params(self.module)
        self.translates = translates(self.module.config)
        self._forward = jax.jit(lambda t, s: self.module.apply({"params": self.params}, t, source=s))

    def sources(self, rows=range(3)):
        """Of these rows, as `beam_search` takes them."""
        return [SOURCES[row] for row in rows] if self.translates else None

    def logprobs(self, row: int, texts: list[list[int]]) -> np.ndarray:
        """Log-probabilities [N,ROOM,V] of what follows each token of N texts."""
        tokens_NT = np.zeros((len(texts), ROOM), np.int32)
        for tokens_T, text in zip(tokens_NT, texts, strict=True):
            tokens_T[: len(text)] = text
        source = None
        if self.translates:
            source = Source.of(np.tile(np.array(SOURCES[row], np.int32), (len(texts), 1)))
        logits_NTV = np.asarray(self._forward(tokens_NT, source), np.float64)
        shifted_NTV = logits_NTV - logits_NTV.max(-1, keepdims=True)
        return shifted_NTV - np.log(np.exp(shifted_NTV).sum(-1, keepdims=True))


@pytest.fixture(scope="module", params=NETWORKS)
def network(request) -> Network:
    return Network(**NETWORKS[request.param])


def plain_search(network, row, beams, max_tokens, end, penalty, early_stopping=False, groups=1, diversity=0.0):
    """All finished texts of a row as (score, tokens), best first: lists, no cache, everything computed anew."""
    lost, found = np.zeros((max_tokens + 1, VOCABULARY)), []
    for _ in range(groups):
        found += plain_group(network, row, beams // groups, max_tokens, end, penalty, early_stopping, lost, diversity)
    return sorted(found, key=lambda text: -text[0])


def plain_group(network, row, beams, max_tokens, end, penalty, early_stopping, lost, diversity):
    """The finished texts of one group; what the next one's tokens lose at each length is added to `lost`."""
    prompt, going, done = PROMPTS[row], [(0.0, [])], []
    for length in range(1, max_tokens + 1):
        texts = [prompt + written for _, written in going]
        padded = texts + [[0]] * (beams - len(texts))  # One shape, compiled once.
        found_NTV = network.logprobs(row, padded)
        next_NV = [logprobs_TV[len(text) - 1] for text, logprobs_TV in zip(padded, found_NTV, strict=True)]
        candidates = [
            (logprob + float(next_NV[number][token] - lost[length][token]), [*written, token])
            for number, (logprob, written) in enumerate(going)
            for token in range(len(next_NV[number]))
        ]
        candidates = sorted(candidates, key=lambda candidate: -candidate[0])[: 2 * beams]
        ends = [written[-1] == end or length == max_tokens for _, written in candidates]
        done += [
            (logprob / length**penalty, written)
            for (logprob, written), over in list(zip(candidates, ends, strict=True))[:beams]
            if over
        ]
        done = sorted(done, key=lambda text: -text[0])[:beams]
        going = [candidate for candidate, over in zip(candidates, ends, strict=True) if not over][:beams]
        longest = max_tokens if early_stopping == "never" and penalty > 0 else length
        stops = early_stopping is True
        if not going or (len(done) == beams and (stops or going[0][0] / longest**penalty <= done[-1][0])):
            break
        for _, written in going:
            lost[length][written[-1]] += diversity
    return done


@pytest.mark.parametrize(
    ("beams", "penalty", "early"),
    [(4, 0.6, False), (4, 2.0, False), (4, 1.0, True), (4, -1.0, False), (3, 2.0, "never")],
)
def test_a_plain_search_finds_the_same_texts_and_scores(network, beams, penalty, early):
    for max_tokens, end in ((12, END), (3, VOCABULARY + 1)):
        found = beam_search(
            network.module, network.params, PROMPTS,
            beams=beams, max_tokens=max_tokens, ends=[end], length_penalty=penalty, sources=network.sources(),
            num_best=beams, early_stopping=early,
        )  # fmt: skip
        for row, ours in enumerate(found):
            theirs = plain_search(network, row, beams, max_tokens, end, penalty, early)
            assert [text.tokens for text in ours] == [tokens for _, tokens in theirs]
            np.testing.assert_allclose([text.score for text in ours], [score for score, _ in theirs], atol=1e-4)


@pytest.mark.parametrize(("groups", "diversity"), [(2, 0.7), (4, 1.5)])
def test_groups_find_what_a_plain_search_of_groups_finds(groups, diversity):
    network = Network(**NETWORKS["rope"])
    found = beam_search(
        network.module, network.params, PROMPTS,
        beams=4, max_tokens=8, ends=[END], num_best=4, groups=groups, diversity=diversity,
    )  # fmt: skip
    for row, ours in enumerate(found):
        theirs = plain_search(network, row, 4, 8, END, 1.0, groups=groups, diversity=diversity)
        assert [text.tokens for text in ours] == [tokens for _, tokens in theirs]
        np.testing.assert_allclose([text.score for text in ours], [score for score, _ in theirs], atol=1e-4)
    first = [{text.tokens[0] for text in ours} for ours in found]
    assert groups == 2 or min(map(len, first)) > 1  # They begin in different ways.


def test_the_cases_above_end_texts_early_and_late():
    network = Network(**NETWORKS["rope"])
    lengths = [len(tokens) for row in range(3) for _, tokens in plain_search(network, row, 4, 12, END, 1.0)]
    assert min(lengths) < 12 == max(lengths)
    differ = [plain_search(network, row, 3, 12, END, 1.0, early) for row in range(3) for early in (False, True)]
    assert differ[::2] != differ[1::2]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_enough_beams_find_every_text_there_is(penalty):
    network = Network(vocabulary=4, logit_scale=0.2)
    every = [
        list(tokens)
        for length in (1, 2, 3)
        for tokens in itertools.product(range(4), repeat=length)
        if 0 not in tokens[:-1] and (tokens[-1] == 0 or length == 3)
    ]
    prompts = [[1, 2], [3, 3]]
    found = beam_search(
        network.module, network.params, prompts,
        beams=64, max_tokens=3, ends=[0], length_penalty=penalty, num_best=64,
    )  # fmt: skip
    for prompt, ours in zip(prompts, found, strict=True):
        logprobs_NTV = network.logprobs(0, [prompt + tokens for tokens in every])
        scores = [
            sum(logprobs_TV[len(prompt) - 1 + place, token] for place, token in enumerate(tokens))
            / len(tokens) ** penalty
            for tokens, logprobs_TV in zip(every, logprobs_NTV, strict=True)
        ]
        order = np.argsort(-np.array(scores))
        assert [text.tokens for text in ours] == [every[number] for number in order]
        np.testing.assert_allclose([text.score for text in ours], np.array(scores)[order], atol=1e-4)


def test_one_beam_is_greedy(network):
    found = beam_search(
        network.module, network.params, PROMPTS, beams=1, max_tokens=14, ends=[END], sources=network.sources()
    )
    chunks = generate(
        network.module, network.params, PROMPTS, Sampling(temperature=0),
        max_tokens=14, seeds=[0, 0, 0], ends=[END], sources=network.sources(),
    )  # fmt: skip
    chunks = list(chunks)
    tokens_BC, logprobs_BC = (np.concatenate([chunk[part] for chunk in chunks], axis=1) for part in (0, 1))
    for (text,), tokens_C, logprobs_C in zip(found, tokens_BC.tolist(), logprobs_BC, strict=True):
        length = tokens_C.index(END) + 1 if END in tokens_C else 14
        assert text.tokens == tokens_C[:length]
        assert text.score == pytest.approx(logprobs_C[:length].mean(), abs=1e-4)


def test_a_row_depends_on_its_own_prompt_and_source_only(network):
    def search(rows):
        return beam_search(
            network.module, network.params, [PROMPTS[row] for row in rows],
            beams=4, max_tokens=10, ends=[END], sources=network.sources(rows), num_best=4,
        )  # fmt: skip

    together = search([0, 1, 2])
    for rows in ([2, 0, 1], [1]):
        for row, texts in zip(rows, search(rows), strict=True):
            assert [text.tokens for text in texts] == [text.tokens for text in together[row]]


def test_any_of_several_tokens_ends_a_text():
    network = Network(**NETWORKS["rope"])
    ends = [END, 5, 0]
    found = beam_search(network.module, network.params, PROMPTS, beams=4, max_tokens=12, ends=ends, num_best=4)
    texts = [text.tokens for row in found for text in row]
    assert len({tokens[-1] for tokens in texts if len(tokens) < 12} & set(ends)) > 1
    assert all(not set(tokens[:-1]) & set(ends) for tokens in texts)


def test_what_cannot_be_searched_is_refused():
    network = Network(**NETWORKS["learned, window"])
    settings = {"max_tokens": 8, "ends": [END]}
    with pytest.raises(ConfigError, match=r"5 best of --beams=4"):
        beam_search(network.module, network.params, PROMPTS, beams=4, num_best=5, **settings)
    with pytest.raises(ConfigError, match=r"--beam_groups=3: --beams=4 do not fall"):
        beam_search(network.module, network.params, PROMPTS, beams=4, groups=3, **settings)
    with pytest.raises(ValueError, match="at least one token"):
        beam_search(network.module, network.params, [[]], beams=4, **settings)
    with pytest.raises(ConfigError, match=r"25 tokens.*24 rows"):
        beam_search(network.module, network.params, [[1] * 25], beams=4, **settings)
    (row,) = beam_search(network.module, network.params, [[1] * 20], beams=4, **settings)
    assert len(row[0].tokens) <= 4
