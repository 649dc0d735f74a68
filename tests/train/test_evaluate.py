from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny

from configs import schema
from configs.convert import override
from configs.schema import Mesh
from model import build
from model.sharding import make_mesh
from train import evaluate
from train.data.sections import Corpus, Section
from train.data.tokenizer import make_tokenizer
from train.evaluate import make_evaluate, make_score
from train.translation import score
from train.writing import translate

V = 5
BYTE_LENGTHS_V = np.array([0, 1, 2, 3, 4], np.int32)  # token 0 is end_of_text


class Table:
    """Logits that depend on the token alone: an output layer that reads one-hot vectors."""

    def __init__(self, size: int = V) -> None:
        wide = {"model.width": size, "model.num_heads": 1, "tokenizer.vocab_size": size}
        self.config = override(schema.Config(), {**wide, "model.tied_embeddings": False})

    def apply(self, variables: Any, tokens_BT: jax.Array, **_: Any) -> jax.Array:
        return jax.nn.one_hot(tokens_BT, self.config.model.width)


def as_params(table_VV: Any) -> Any:
    return {"output": {"kernel": jnp.asarray(table_VV, jnp.float32)}}


def batches(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    shape = (8, 6)
    return [
        {name: rng.integers(0, high, shape).astype(np.int32)
         for name, high in (("inputs", V), ("targets", V), ("segments", 3), ("positions", 6))}
        for _ in range(count)
    ]  # fmt: skip


def test_bits_per_byte_count_every_target_and_the_bytes_of_the_text_alone():
    table_VV = np.random.default_rng(1).normal(size=(V, V))
    evaluate = make_evaluate(Table(), BYTE_LENGTHS_V, make_mesh(Mesh()))
    data = batches(3)
    result = evaluate(as_params(table_VV), data)
    logs_VV = table_VV - np.log(np.exp(table_VV).sum(-1, keepdims=True))
    nll = tokens = size = 0.0
    for b in data:
        counts = b["segments"] != 0
        nll -= logs_VV[b["inputs"], b["targets"]][counts].sum()
        tokens += counts.sum()
        size += BYTE_LENGTHS_V[b["targets"]][counts].sum()
    assert result == {
        "eval/loss": pytest.approx(nll / tokens, rel=1e-6),
        "eval/bits_per_byte": pytest.approx(nll / np.log(2) / size, rel=1e-6),
        "eval/tokens": tokens,
    }


def test_a_uniform_guess_over_bytes_costs_eight_bits_per_byte():
    evaluate = make_evaluate(Table(256), np.ones(256, np.int32), make_mesh(Mesh(), jax.devices()[:1]))
    ones = np.ones((2, 4), np.int32)
    batch = {"inputs": ones, "targets": ones, "segments": ones, "positions": ones}
    assert evaluate(as_params(np.zeros((256, 256))), [batch])["eval/bits_per_byte"] == pytest.approx(8)


def test_it_gives_up_between_two_batches_when_asked_to():
    evaluate = make_evaluate(Table(), BYTE_LENGTHS_V, make_mesh(Mesh()))
    data, taken = batches(4), []

    def source():
        for number, batch in enumerate(data):
            taken.append(number)
            yield batch

    assert evaluate(as_params(np.zeros((V, V))), source(), lambda: len(taken) == 3) is None
    assert taken == [0, 1, 2]


PAIRS = [Section(f"die Katze {number}", last=True, source=f"the cat {number}") for number in range(9)]
CORPUS = Corpus(PAIRS[:4], PAIRS[4:], "", "")
BYTES = make_tokenizer(schema.Tokenizer(source="bytes"), CORPUS)


def translator(**settings: Any) -> Any:
    base = override(tiny(network="encoder_decoder", logit_scale=0.3), {"tokenizer.vocab_size": 257})
    return override(base, {"data.languages": "en-de", "train.score_sentences": 5, **settings})


def test_held_out_sentences_are_translated_greedily_and_scored():
    config = translator()
    module = build(config)
    params, scores = random_params(module), make_score(module, config, CORPUS, BYTES)
    assert scores is not None
    texts = translate(module, params, BYTES, [pair.source for pair in PAIRS[4:]], max_tokens=config.data.length)
    expected = score(texts, [pair.text for pair in PAIRS[4:]], ("en", "de"))
    assert scores(params) == {"eval/bleu": expected["bleu"], "eval/chrf": expected["chrf"]}
    assert expected["chrf"] > 0


def test_scoring_gives_up_between_two_batches_when_asked_to(monkeypatch):
    monkeypatch.setattr(evaluate, "SCORE_BATCH", 2)
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) == 3

    config = translator()
    scores = make_score(build(config), config, CORPUS, BYTES)
    assert scores is not None
    assert scores(random_params(build(config)), stop) is None
    assert len(asked) == 3


@pytest.mark.parametrize(
    "settings", [{"model.network": "decoder"}, {"data.languages": ""}, {"train.score_sentences": 0}]
)
def test_without_pairs_a_translator_or_sentences_nothing_is_scored(settings):
    config = translator(**settings)
    assert make_score(build(config), config, CORPUS, BYTES) is None
