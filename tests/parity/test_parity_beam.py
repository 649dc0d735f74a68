"""Beam search finds the texts and scores that `transformers` finds with the same weights."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import compare as parity  # noqa: E402
import numpy as np  # noqa: E402

from model import build, exchange  # noqa: E402
from model.generate import beam_search  # noqa: E402

BEAMS, NEW = 4, 12


def theirs(network, tokens, ends, penalty, early):
    """Texts without prompt and padding, and their scores."""
    tokens = torch.tensor([tokens], dtype=torch.long)
    with torch.no_grad():
        out = network.generate(
            tokens, attention_mask=torch.ones_like(tokens), num_beams=BEAMS, num_return_sequences=BEAMS,
            length_penalty=penalty, early_stopping=early, max_new_tokens=NEW, do_sample=False,
            eos_token_id=ends, pad_token_id=0, use_cache=False, return_dict_in_generate=True, output_scores=True,
            forced_eos_token_id=None, bad_words_ids=None,
        )  # fmt: skip
    start = 1 if network.config.is_encoder_decoder else tokens.shape[1]
    found = []
    for sequence, score in zip(out.sequences[:, start:].tolist(), out.sequences_scores.tolist(), strict=True):
        places = [place for place, token in enumerate(sequence) if token in ends]
        found.append((sequence[: places[0] + 1] if places else sequence, score))
    return found


@pytest.fixture(scope="module", params=["gpt2", "t5", "marian"])
def networks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    network = parity.make(parity.CASES[request.param])
    network.save_pretrained(folder)
    return network, exchange.read(str(folder))


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [0.6, 1.0, 2.0])
def test_same_texts_and_scores(networks, penalty, early):
    network, imported = networks
    tokens_BT, real_BT = parity.texts(network.config)
    rows = [tokens_T[: sum(real_T)].tolist() for tokens_T, real_T in zip(tokens_BT, real_BT, strict=True)]
    prompts, sources = rows, None
    if imported.start is not None:
        prompts, sources = [[imported.start] for _ in rows], rows

    def ours(ends):
        return beam_search(
            build(imported.config), imported.params, prompts,
            beams=BEAMS, max_tokens=NEW, ends=ends, length_penalty=penalty, sources=sources, num_best=BEAMS,
            early_stopping=early,
        )  # fmt: skip

    # Random networks hardly end their texts: let them end with tokens that they write in the middle of them.
    endless = ours([-1, -2, -3])
    ends = [endless[0][0].tokens[4], endless[1][0].tokens[2], endless[2][0].tokens[6]]
    lengths = []
    for row, found in zip(rows, ours(ends), strict=True):
        expected = theirs(network, row, ends, penalty, early)
        assert [text.tokens for text in found] == [tokens for tokens, _ in expected]
        np.testing.assert_allclose([text.score for text in found], [score for _, score in expected], atol=1e-4)
        lengths += [len(tokens) for tokens, _ in expected]
    assert min(lengths) < NEW or penalty == 2  # Which favours the longest.
