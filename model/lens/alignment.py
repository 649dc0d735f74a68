"""Alignment by attention: which word of a source each word of a translation was written from, against given links.

Shapes: T tokens of the translation, S tokens of the source, W words of the translation, Z words of the source.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

Link = tuple[int, int]  # A word of the translation, a word of the source; from 0.


def between_words(weights_TS: np.ndarray, words_T: np.ndarray, words_S: np.ndarray) -> np.ndarray:
    """Weights between words, [W,Z] float64: those on a source word's tokens summed, of a translated word's averaged.

    Args:
      weights_TS: weights of a head (or their mean over heads) on the source, when each token was written.
      words_T, words_S: the word that each token belongs to, int from 0; below 0 for none, such as an end of text.
    """
    sums_TZ = np.asarray(weights_TS, np.float64) @ _belongs(words_S)
    of_WT = _belongs(words_T).T
    return of_WT @ sums_TZ / np.maximum(of_WT.sum(axis=1, keepdims=True), 1)


def _belongs(words_S: np.ndarray) -> np.ndarray:
    """1 for the word that a token belongs to, [S,Z] float64."""
    words_S = np.asarray(words_S)
    return (words_S[:, None] == np.arange(words_S.max(initial=-1) + 1)).astype(np.float64)


def links(weights_WZ: np.ndarray) -> set[Link]:
    """Each word of the translation with the source word that it looked at most."""
    return {(word, int(source)) for word, source in enumerate(np.argmax(weights_WZ, axis=-1))}


def error_rate(found: Collection[Link], sure: Collection[Link], possible: Collection[Link] = ()) -> float:
    """Alignment error rate: 1 - (|A and S| + |A and P|) / (|A| + |S|), 0 at best (Och & Ney 2003, section 2.4).

    Args:
      found: the links A that are judged.
      sure: the links S that must be there.
      possible: more links that may be there; P is these and the sure ones.

    Raises:
      ValueError: neither found nor sure links.
    """
    found, sure = set(found), set(sure)
    if not found and not sure:
        raise ValueError("There are no links to compare.")
    return 1 - (len(found & sure) + len(found & (sure | set(possible)))) / (len(found) + len(sure))
