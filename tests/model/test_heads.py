"""Scores of heads say what a head attends to: for made-up heads that do exactly one thing, and by a loop over pairs."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import random_tokens

from model.lens.heads import head_scores

TOKENS_BT = random_tokens(2, 12) % 5


def by_hand(weights_NTS, tokens_T):
    """The scores of one text in one layer, each as the values of its queries [N, queries]."""
    N, T, _ = weights_NTS.shape
    found = {name: [] for name in ("previous", "duplicate", "induction", "sink", "distance", "entropy")}
    for t in range(T):
        row_NS = weights_NTS[:, t].astype(np.float64)
        copies = [s for s in range(t) if tokens_T[s] == tokens_T[t]]
        if t:
            found["previous"].append(row_NS[:, t - 1])
            found["sink"].append(row_NS[:, 0])
        if copies:
            found["duplicate"].append(row_NS[:, copies].sum(1))
            found["induction"].append(row_NS[:, [s + 1 for s in copies]].sum(1))
        found["distance"].append((row_NS * np.abs(t - np.arange(T))).sum(1) / row_NS.sum(1))
        found["entropy"].append(-(row_NS * np.log(np.where(row_NS > 0, row_NS, 1))).sum(1))
    return {name: np.array(values).reshape(-1, N).T for name, values in found.items()}


@pytest.mark.parametrize("causal", [True, False])
def test_scores_are_means_over_the_queries_that_they_are_defined_for(causal):
    random = np.random.default_rng(0)
    weights_LBNTS = random.random((3, 2, 4, 12, 12)) ** 3
    weights_LBNTS = np.tril(weights_LBNTS) if causal else weights_LBNTS
    weights_LBNTS = (weights_LBNTS / weights_LBNTS.sum(-1, keepdims=True)).astype(np.float32)
    weights_LBNTS[1] *= 0.5  # As with sinks.
    found = head_scores(weights_LBNTS, TOKENS_BT)
    for layer in range(3):
        rows = [by_hand(weights_LBNTS[layer, row], TOKENS_BT[row]) for row in range(2)]
        for name, score_LN in found.items():
            expected_N = np.concatenate([row[name] for row in rows], axis=1).mean(1)
            np.testing.assert_allclose(score_LN[layer], expected_N, atol=1e-5, err_msg=name)


def test_a_head_that_does_one_thing_scores_one():
    T, period = 12, 4
    tokens_BT = np.arange(T, dtype=np.int32)[None] % period
    eye = np.eye(T, dtype=np.float32)
    looks = {"previous": eye[np.maximum(np.arange(T) - 1, 0)], "sink": eye[[0] * T]}
    looks["duplicate"] = eye[np.maximum(np.arange(T) - period, 0)]
    looks["induction"] = eye[np.maximum(np.arange(T) - period + 1, 0)]
    spread = np.tril(np.ones((T, T), np.float32))
    spread /= spread.sum(-1, keepdims=True)
    found = head_scores(np.stack([*looks.values(), spread])[None, None], tokens_BT)
    for head, name in enumerate(looks):
        assert found[name][0, head] == pytest.approx(1), name
    np.testing.assert_allclose(found["entropy"][0], [0, 0, 0, 0, np.log(np.arange(1, T + 1)).mean()], atol=1e-6)
    np.testing.assert_allclose(found["distance"][0, [0, 1, 4]], [11 / 12, 5.5, 2.75], atol=1e-6)


def test_without_repeats_there_is_no_induction_score():
    weights_LBNTS = np.full((1, 1, 1, 4, 4), 0.25, np.float32)
    found = head_scores(weights_LBNTS, np.arange(4, dtype=np.int32)[None])
    assert np.isnan(found["induction"]).all()
    assert np.isnan(found["duplicate"]).all()
    assert found["sink"][0, 0] == 0.25
