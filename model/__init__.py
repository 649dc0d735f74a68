"""Everything that is computed with a network: pure functions of (parameters, inputs)."""

from __future__ import annotations

from typing import Any

from configs.schema import Config
from model.decoder import Decoder
from model.encoder_decoder import EncoderDecoder
from model.lstm import LSTM
from model.lstm_encoder_decoder import LSTMEncoderDecoder
from model.source import Source
from model.transformer import Head

NETWORKS: dict[str, Any] = {
    "decoder": Decoder,
    "encoder": Decoder,
    "encoder_decoder": EncoderDecoder,
    "lstm": LSTM,
    "lstm_encoder_decoder": LSTMEncoderDecoder,
}
Network = Decoder | EncoderDecoder | LSTM | LSTMEncoderDecoder


def build(config: Config) -> Network:
    """The network that `config` describes, as a frozen description without weights; all have the same call."""
    return NETWORKS[config.model.network](config)


__all__ = ["Head", "Network", "Source", "build"]
