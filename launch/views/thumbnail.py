"""One head as a small picture, for what is drawn without a browser; `charts.js` makes the same on a page."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from launch.views.page import BLUE


def thumbnail(weights_TS: np.ndarray, causal: bool) -> str:
    """One head as a small PNG in a data URL: blue whose opacity grows with the weight's square root.

    A picture for each head keeps thirty heads of thousands of cells quick to draw, which as marks they are not.
    """
    T, S = weights_TS.shape
    pool = -(-max(T, S) // 96)  # each pixel shows the largest of pool x pool weights, so that no bright cell is lost
    pooled_TS = np.pad(weights_TS, ((0, -T % pool), (0, -S % pool)))
    down, across = len(pooled_TS) // pool, pooled_TS.shape[1] // pool
    pooled_TS = pooled_TS.reshape(down, pool, across, pool).max((1, 3))
    level_TS = 1 + np.rint(14 * np.sqrt(np.clip(pooled_TS, 0, 1))).astype(np.uint8)
    level_TS = np.tril(level_TS) if causal else level_TS
    level_TS = level_TS.repeat(-(-96 // down), 0).repeat(-(-96 // across), 1)  # nearest neighbour: browsers would blur
    opacity = [0, *(round(255 * (0.05 + 0.95 * level / 14)) for level in range(15))]
    colour = bytes.fromhex(BLUE[1:])

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = level_TS.shape
    rows = b"".join(b"\0" + row.tobytes() for row in level_TS)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", colour * 16)
        + chunk(b"tRNS", bytes(opacity))
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(png).decode()
