"""A made-up task is learnt through the whole of training, and how well is measured on rows that were held out."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params

from configs.check import check
from configs.convert import override
from configs.presets import preset
from model import build
from model.lens.places import WEIGHTS
from model.lens.record import record
from train.checkpoint import Restored, restore_params
from train.data.pipeline import held_out_batches
from train.data.sources import open_corpus
from train.data.tokenizer import make_tokenizer
from train.loop import train
from train.tasks import accuracy, backwards, looks_back


@pytest.mark.end_to_end
def test_attention_learns_which_value_stood_behind_a_key(tmp_path):
    settings = {
        "train.steps": 200, "train.eval_every": 0, "train.eval_batches": 1, "train.checkpoint_every": 0,
        "train.sample_every": 0, "optimizer.schedule": "constant",
    }  # fmt: skip
    train(check(override(preset("recall"), settings)), tmp_path / "run", "")
    assert accuracy(restore_params(tmp_path / "run")) >= 0.98


def test_heads_that_look_backwards_are_counted_by_where_they_look_most():
    """With random weights nobody looks backwards more often than by chance, and shares are of held-out rows."""
    config = override(preset("reversal"), {"model.width": 16, "model.num_layers": 1, "tokenizer.vocab_size": 34})
    corpus = open_corpus(config.data)
    tokenizer = make_tokenizer(config.tokenizer, corpus)
    restored = Restored(config, random_params(build(config)), tokenizer, 0)
    looks_LN = backwards(restored, length=6, count=10)
    assert looks_LN.shape == (1, 4)
    assert (looks_LN * 60 == np.round(looks_LN * 60)).all()  # Six words in each of ten rows.
    assert looks_LN.max() < 0.7


def test_heads_look_back_by_the_weights_that_stand_there():
    """Places that are asked for are counted, and weights on one word add up to 1 with those on all others."""
    config = override(preset("lags"), {"model.width": 16, "tokenizer.vocab_size": 13, "data.length": 7})
    corpus = open_corpus(config.data)
    restored = Restored(config, random_params(build(config)), make_tokenizer(config.tokenizer, corpus), 0)
    batch = next(iter(held_out_batches(corpus, restored.tokenizer, config)))
    weights_BNTS = record(build(config), restored.params, jnp.asarray(batch["inputs"]), WEIGHTS[:1])[WEIGHTS[0]][0]
    expected_ND = np.mean([weights_BNTS[:, :, t, [t - back for back in range(6)]] for t in (5, 6)], axis=(0, 1))
    looks_LND = looks_back(restored, batch)
    np.testing.assert_allclose(looks_LND, [expected_ND], rtol=1e-5)
    assert (looks_LND.sum(-1) <= 1 + 1e-6).all()
