"""Writing text with a network: read the prompt once, then choose one token after another."""

from model.generate.beam import Hypothesis, beam_search
from model.generate.choose import Sampling
from model.generate.decode import Chunk, generate
from model.generate.engine import Engine, EngineStats, Event, Request, Token
from model.generate.grammar import Grammar, Grammars

__all__ = [
    "Chunk", "Engine", "EngineStats", "Event", "Grammar", "Grammars", "Hypothesis", "Request", "Sampling", "Token",
    "beam_search", "generate",
]  # fmt: skip
