"""What a text may be, told by a regular expression or a JSON schema: which tokens may come next is a mask.

The masks are made by `llguidance` on the host, between one token and the next; it follows every way in which tokens can
spell a text of the grammar. Where there is only one text that can come, it is spelled with the longest tokens.

Shapes: B rows, V vocabulary, W = V / 32 words of a mask, one bit for each token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.schema import ConfigError


@dataclass(frozen=True)
class Grammar:
    """What the whole of a text has to be; one of the two."""

    regex: str = ""  # In the syntax of Rust's `regex`, anchored at both ends.
    json_schema: str = ""  # The schema as JSON.

    def __post_init__(self) -> None:
        """Refuse what is no grammar."""
        if bool(self.regex) == bool(self.json_schema):
            raise ConfigError("--regex and --json_schema: give one of the two.")


class Grammars:
    """Makes the matchers of one tokenizer. Needs the package `llguidance` (`pip install seq2see[grammar]`)."""

    def __init__(self, pieces: Sequence[bytes], ends: Sequence[int], vocabulary: int) -> None:
        """Learn the tokens.

        Args:
          pieces: the bytes of each token, none for special tokens, which no grammar allows.
          ends: the tokens that end a text.
          vocabulary: logits per token, at least as many as there are pieces.

        Raises:
          ConfigError: the package is not there.
        """
        try:
            import llguidance
        except ImportError:
            raise ConfigError("A grammar needs the package llguidance: pip install 'seq2see[grammar]'.") from None
        self.ends, self.vocabulary = tuple(ends), vocabulary
        names = [piece or b"\xff<%d>" % token for token, piece in enumerate(pieces)]  # 0xff marks what is special.
        tokens = _Tokens(names, self.ends)
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(tokens), n_vocab=vocabulary, eos_token=list(self.ends)
        )

    def matcher(self, grammar: Grammar) -> Matcher:
        """A new text of this grammar.

        Raises:
          ConfigError: the grammar is wrong; says where.
        """
        from llguidance import LLMatcher

        name = "regex" if grammar.regex else "json_schema"
        try:
            if grammar.regex:
                rules = LLMatcher.grammar_from_regex(grammar.regex)
            else:
                rules = LLMatcher.grammar_from_json_schema(json.dumps(json.loads(grammar.json_schema)))
        except ValueError as error:
            raise ConfigError(f"--{name}={grammar.json_schema}: {error}") from None
        matcher = LLMatcher(self._tokenizer, rules, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().strip().splitlines()[0]
            raise ConfigError(f"--{name}={grammar.regex or grammar.json_schema}: {reason}")
        return Matcher(matcher, self.ends, self.vocabulary)


class Matcher:
    """Follows one text."""

    def __init__(self, matcher: Any, ends: Sequence[int], vocabulary: int) -> None:
        self._matcher, self._ended = matcher, False
        bits_V = np.zeros(-(-vocabulary // 32) * 32, bool)
        bits_V[list(ends)] = True
        self._only_ends_W = np.packbits(bits_V, bitorder="little").view(np.int32)

    def allowed(self) -> np.ndarray:
        """The tokens that may come next, [W] int32; where the grammar is fulfilled and cannot go on, those that end."""
        if self._ended or self._matcher.is_stopped():
            return self._only_ends_W
        # It may have a word more than there are tokens.
        allowed_W = np.frombuffer(self._matcher.compute_bitmask(), np.int32)[: len(self._only_ends_W)]
        return allowed_W if allowed_W.any() else self._only_ends_W

    def take(self, token: int) -> None:
        """The token that was chosen, one of those that were allowed."""
        if not self._ended and not self._matcher.is_stopped():
            self._ended = not self._matcher.consume_token(token)


class _Tokens:
    """A tokenizer as `llguidance` wants it."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], ends: tuple[int, ...]) -> None:
        self.tokens, self.eos_token_id = tokens, ends[0]
        self.special_token_ids = [token for token, piece in enumerate(tokens) if piece.startswith(b"\xff<")]
        self._numbers = {piece: token for token, piece in enumerate(tokens)}
        self._longest = max(map(len, tokens))

    def __call__(self, text: bytes) -> list[int]:
        """The longest token that the text begins with, then of the rest: what a text is made of that has to come."""
        found, at = [], 0
        while at < len(text):
            for length in range(min(self._longest, len(text) - at), 0, -1):
                if (token := self._numbers.get(text[at : at + length])) is not None:
                    found.append(token)
                    break
            else:
                return found  # No token has this byte.
            at += length
        return found


def masks(matchers: Sequence[Matcher | None], vocabulary: int) -> np.ndarray:
    """The tokens that each row may take next, [B,W] int32; all, where there is no grammar."""
    allowed_BW = np.full((len(matchers), -(-vocabulary // 32)), -1, np.int32)
    for row, matcher in enumerate(matchers):
        if matcher is not None:
            allowed_BW[row] = matcher.allowed()
    return allowed_BW


def only_allowed(logits_BV: jax.Array, allowed_BW: jax.Array) -> jax.Array:
    """Logits [B,V], -inf where a mask forbids the token."""
    V = logits_BV.shape[-1]
    bits_BWb = (allowed_BW[:, :, None] >> jnp.arange(32)[None, None]) & 1
    return jnp.where(bits_BWb.reshape(len(logits_BV), -1)[:, :V] == 1, logits_BV, -jnp.inf)
