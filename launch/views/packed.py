"""Attention weights as bytes that a page carries and unpacks (`charts.js`): all heads of a deep network in 2 MB.

A cell is one byte, 255 times the square root of the weight, which is off by 0.004 at most and by less for small
weights; below half a thousandth it is 0. Of causal attention only the lower triangle is there. The whole is deflated
(RFC 1950) and written in base64.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np

_LEAST = 5e-4  # Nobody sees less, and what many cells have in common takes little room.


def packed(weights_LNTS: np.ndarray, causal: bool) -> str:
    """The bytes of all cells, layer by layer, head by head, row by row."""
    T, S = weights_LNTS.shape[2:]
    rows, columns = cells(T, S, causal)
    weights_LNC = weights_LNTS[..., rows, columns]
    roots_LNC = np.where(weights_LNC < _LEAST, 0, np.rint(255 * np.sqrt(np.clip(weights_LNC, 0, 1))))
    return base64.b64encode(zlib.compress(roots_LNC.astype(np.uint8).tobytes(), 9)).decode()


def cells(T: int, S: int, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys of the cells that are there, row by row."""
    rows, columns = np.tril_indices(T) if causal else np.indices((T, S)).reshape(2, -1)
    return rows, columns
