"""What could be found out from examples is what closed forms say, and a network is judged at the right places."""

from __future__ import annotations

import numpy as np
import pytest

from configs.convert import override
from configs.presets import preset
from train import in_context
from train.checkpoint import Restored
from train.data.in_context import Lookup
from train.data.pipeline import held_out_batches
from train.data.sources import open_corpus
from train.data.tokenizer import make_tokenizer
from train.in_context import fitted, lookup_errors, regression_errors, remembered


def rows(dimensions, noise, count=20_000, places=9):
    """Normal inputs [B,P,D], outputs [B,P], of slopes that are normal as well."""
    random = np.random.default_rng(0)
    inputs_BPD = random.standard_normal((count, places, dimensions))
    w_BD = random.standard_normal((count, dimensions))
    return inputs_BPD, np.einsum("BPD,BD->BP", inputs_BPD, w_BD) + noise * random.standard_normal((count, places))


@pytest.mark.parametrize("dimensions", [1, 2])
def test_least_squares_errs_as_its_closed_form_says(dimensions):
    """Of normal inputs: noise² (1 + D / (k - D - 1)) after k examples; the variance of outputs after none."""
    inputs_BPD, outputs_BP = rows(dimensions, noise=0.5)
    error_P = ((fitted(inputs_BPD, outputs_BP) - outputs_BP) ** 2).mean(axis=0)
    assert error_P[0] == pytest.approx(dimensions + 0.25, rel=0.05)
    for k in range(dimensions + 4, 9):
        assert error_P[k] == pytest.approx(0.25 * (1 + dimensions / (k - dimensions - 1)), rel=0.1)


def test_without_noise_as_many_examples_as_dimensions_tell_all_and_fewer_what_they_can():
    inputs_BPD, outputs_BP = rows(2, noise=0.0, count=1000)
    error_P = np.median((fitted(inputs_BPD, outputs_BP) - outputs_BP) ** 2, axis=0)
    assert error_P[2:].max() < 1e-18
    one_B = (inputs_BPD[:, 0] * inputs_BPD[:, 1]).sum(-1) / (inputs_BPD[:, 0] ** 2).sum(-1) * outputs_BP[:, 0]
    np.testing.assert_allclose(fitted(inputs_BPD, outputs_BP)[:, 1], one_B)


def test_ridge_is_the_mean_of_what_is_possible_and_errs_less_than_any_other():
    inputs_BPD, outputs_BP = rows(1, noise=0.5)
    error = {
        penalty: ((fitted(inputs_BPD, outputs_BP, penalty) - outputs_BP) ** 2).mean(axis=0)
        for penalty in (0.0, 0.05, 0.25, 1.0)
    }
    assert (error[0.25] <= np.min([error[0.0], error[0.05], error[1.0]], axis=0)).all()
    x, y = inputs_BPD[:, :3, 0], outputs_BP[:, :3]
    mean_B = (x * y).sum(1) / 0.25 / (1 + (x**2).sum(1) / 0.25)  # A normal slope, seen through noise three times.
    np.testing.assert_allclose(fitted(inputs_BPD, outputs_BP, 0.25)[:, 3], mean_B * inputs_BPD[:, 3, 0])


def test_who_remembers_all_errs_as_often_as_keys_are_new():
    task, wrong = Lookup(8, pairs=16), []
    for number in range(1000):
        words_P2 = task.example(np.random.default_rng(number)).words_T.reshape(-1, 2)
        # Of 16 values one in 16 is guessed.
        wrong.append([15 / 16 * (key not in words_P2[:place, 0]) for place, key in enumerate(words_P2[:, 0])])
    np.testing.assert_allclose(np.mean(wrong, axis=0), remembered(task), atol=0.03)


@pytest.mark.parametrize(
    ("source", "errors", "share"), [("regression:2", regression_errors, 0.5**2), ("lookup:4", lookup_errors, 1)]
)
def test_who_says_what_comes_has_no_error_and_who_says_its_neighbour_has_one(source, errors, share, monkeypatch):
    config = override(preset("regression"), {"data.source": source, "train.batch_size": 128})
    tokenizer = make_tokenizer(config.tokenizer, open_corpus(config.data))
    restored = Restored(config, {}, tokenizer, 0)
    id_W = [tokenizer.encode(f" {word}")[0] for word in open_corpus(config.data).held_out.task.words]
    # Behind 25 inputs there are 25 outputs for each, behind 4 keys 16 values; the last is next to the one before it.
    known, several = (25, 25) if source == "regression:2" else (4, 16)
    answer_GA = np.reshape(id_W[known:], (-1, several))
    next_GA = np.concatenate([answer_GA[:, 1:], answer_GA[:, -2:-1]], axis=1)
    next_to_it = dict(zip(answer_GA.ravel(), next_GA.ravel(), strict=True))

    def answers(restored, next_to):
        for batch in held_out_batches(open_corpus(config.data), tokenizer, config):
            said_BT = np.vectorize(lambda id: next_to_it.get(id, id))(batch["targets"]) if next_to else batch["targets"]
            yield 100.0 * np.eye(tokenizer.size)[said_BT], batch

    for next_to, expected in ((False, 0.0), (True, share)):
        monkeypatch.setattr(in_context, "answers", lambda restored, next_to=next_to: answers(restored, next_to))
        found = errors(restored)
        np.testing.assert_allclose(found.network, expected, atol=0.005)
        assert all(len(line) == len(found.network) == 16 for line in found.others.values())
