"""Everything that is computed with a network: pure functions of (parameters, inputs)."""

from __future__ import annotations

from configs.schema import Config
from model.decoder import Decoder


def build(config: Config) -> Decoder:
    """The network that `config` describes, as a frozen description without weights."""
    return Decoder(config)


__all__ = ["build"]
