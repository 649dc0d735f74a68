"""Writing text with a network: read the prompt once, then choose one token after another."""

from model.generate.beam import Hypothesis, beam_search
from model.generate.choose import Sampling
from model.generate.contrastive import contrastive_search
from model.generate.decode import Chunk, generate
from model.generate.engine import Engine
from model.generate.grammar import Grammar, Grammars
from model.generate.requests import EngineStats, Event, Request, Token
from model.generate.speculative import Draft, Lookup, Tally, speculate

__all__ = [
    "Chunk", "Draft", "Engine", "EngineStats", "Event", "Grammar", "Grammars", "Hypothesis", "Lookup", "Request",
    "Sampling", "Tally", "Token", "beam_search", "contrastive_search", "generate", "speculate",
]  # fmt: skip
