"""Alignment by attention, and its error rate, on cases that are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from model.lens.alignment import between_words, error_rate, links


def test_tokens_of_a_source_word_add_up_and_those_of_a_translated_word_are_averaged():
    weights_TS = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.3, 0.1], [0.6, 0.2, 0.1, 0.1], [0, 0, 0, 1]])
    words_T, words_S = np.array([0, 0, 1, -1]), np.array([0, 1, 1, -1])
    weights_WZ = between_words(weights_TS, words_T, words_S)
    np.testing.assert_allclose(weights_WZ, [[0.3, 0.45], [0.6, 0.3]])
    assert links(weights_WZ) == {(0, 1), (1, 0)}


def test_the_error_rate_is_that_of_och_and_ney():
    sure, possible = {(0, 0), (1, 1)}, {(2, 1), (2, 2)}
    assert error_rate(sure, sure, possible) == 0
    assert error_rate(sure | {(2, 2)}, sure, possible) == 0  # A possible link costs nothing.
    assert error_rate({(0, 0), (2, 2), (3, 0)}, sure, possible) == pytest.approx(1 - (1 + 2) / (3 + 2))
    assert error_rate({(0, 1)}, sure) == 1
    with pytest.raises(ValueError, match="no links"):
        error_rate([], [])
