"""Writing text with a network: read the prompt once, then choose one token after another."""

from model.generate.beam import Hypothesis, beam_search
from model.generate.choose import Sampling
from model.generate.decode import Chunk, generate

__all__ = ["Chunk", "Hypothesis", "Sampling", "beam_search", "generate"]
