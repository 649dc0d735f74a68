"""Many texts at once, each coming and going as it likes: continuous batching (Yu et al. 2022, "Orca").

The engine owns a cache with room for `slots` texts. A request waits until a slot is free; its prompt is read into the
slot in pieces of PIECE tokens, between which the other texts go on; then its row takes part in the one compiled loop
until it ends, and the slot is free again. Every program has one shape whatever is asked for, so nothing is compiled
under load, and a text does not depend on what else is in the batch: it is computed by the same program on the same
numbers.

What the beginnings of prompts leave in the cache is kept as blocks of PIECE tokens, each under a digest of all tokens
up to its end, and copied where a later prompt begins with the same tokens. A block is what the same program computed
from the same tokens, so that a copy changes nothing.

Shapes: B slots, V vocabulary, C tokens of a piece.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict, deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from configs.check import check_length
from configs.derived import fills_in, longest_text, translates
from configs.schema import ConfigError
from model.apart import are_apart
from model.generate.cache import PIECE, empty_cache, ring_slots, spread
from model.generate.choose import likeliest
from model.generate.decode import Rows, State, Written, decode_chunk, shared_by_rows
from model.generate.grammar import Grammars, Matcher, masks
from model.generate.requests import EngineStats, Event, Request, Token
from model.generate.slots import (
    enter,
    padded_source,
    piece_logits,
    put_block,
    read_piece,
    source_bucket,
    stop,
    take_block,
)  # fmt: skip

PIECES = 4  # Pieces that are read between two chunks of the loop, so that who writes need not wait for who reads.
ENDS = 16  # The most tokens that may end a text.


@dataclass
class _Text:
    """A request in its slot."""

    ticket: int
    request: Request
    limit: int  # The most tokens to write.
    matcher: Matcher | None = None
    read: int = 0  # Tokens of the prompt in the cache.
    written: int = 0
    digest: bytes = b""  # Of the tokens read so far.
    prompt: list[Token] = field(default_factory=list)
    cancelled: bool = False


class Engine:
    """Writes the texts of all requests; one thread owns it, and calls `step` in a loop.

    With a mesh set (`jax.set_mesh`) where it is made, parameters lie as they came, and the cache is spread over it by
    its logical axes.
    """

    def __init__(
        self,
        module: Any,
        params: Any,
        *,
        slots: int = 8,
        length: int = 1024,
        top: int = 20,
        chunk: int = 8,
        source_length: int | None = None,
        prefix_tokens: int | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        """Make room for texts.

        Args:
          slots: texts that are written at the same time.
          length: the most tokens of a prompt and its text together; rounded up to a multiple of PIECE, and at most
            what a learned position table has.
          top: the most of the likeliest tokens that a request may ask for.
          chunk: tokens that each text writes in a step; requests join and leave between steps.
          source_length: the most tokens of what a translator translates, by default `length`.
          prefix_tokens: tokens of prompts' beginnings to keep; by default half of what the slots hold. 0 keeps none.
          grammars: of the network's tokenizer; without, requests with a grammar are refused.

        Raises:
          ConfigError: a network that writes no text, or a size below 1.
        """
        config = module.config
        for name, value in (("slots", slots), ("length", length), ("chunk", chunk)):
            if value < 1:
                raise ConfigError(f"--{name}={value}: it must be at least 1.")
        if fills_in(config):
            raise ConfigError(f"--model.network={config.model.network} fills in what is masked; it does not write.")
        self.module, self.params, self.chunk, self.grammars = module, params, chunk, grammars
        self._mesh = jax.sharding.get_mesh()  # Another thread, to which no mesh is set, may call `step`.
        self.top = min(top, config.tokenizer.vocab_size)
        self.length = min(length, longest_text(config) or length)
        self._room = -(-self.length // PIECE) * PIECE
        self._source_slots = 0
        if translates(config):
            self.source_length = min(source_length or length, longest_text(config) or length)
            self._source_slots = source_bucket(self.source_length)
        self._queue: deque[_Text] = deque()
        self._slots: list[_Text | None] = [None] * slots
        self._tickets = 0
        self._generated = self._hits = 0
        self._blocks: OrderedDict[bytes, Any] = OrderedDict()
        tokens = slots * self._room // 2 if prefix_tokens is None else prefix_tokens
        self._max_blocks = 0 if translates(config) else tokens // PIECE
        nobody = self._rows(Request((0,)), 0)
        rows = jax.tree.map(lambda x: np.repeat(x, slots, axis=0), nobody)
        ring = ring_slots(config, self._room, are_apart(params))
        make = jax.jit(lambda: spread(empty_cache(config, slots, self._room, self._source_slots, ring)))
        self._state = State(make(), jax.jit(shared_by_rows)(rows))

    def submit(self, request: Request) -> int:
        """Queue a request; return its ticket.

        Raises:
          ConfigError: it cannot be run; the message names the field.
        """
        self._check(request)
        matcher = self.grammars.matcher(request.grammar) if self.grammars and request.grammar else None
        self._tickets += 1
        limit = min(request.max_tokens, self.length - len(request.tokens))
        self._queue.append(_Text(self._tickets, request, limit, matcher))
        return self._tickets

    def cancel(self, ticket: int) -> None:
        """Forget a request, wherever it is: its slot is free at the next step. Unknown tickets are ignored."""
        for text in (*self._queue, *self._slots):
            if text is not None and text.ticket == ticket:
                text.cancelled = True

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._queue) or any(text is not None for text in self._slots)

    @property
    def stats(self) -> EngineStats:
        """What is going on now."""
        texts = [text for text in self._slots if text is not None]
        return EngineStats(
            queued=len(self._queue),
            active=len(texts),
            slots=len(self._slots),
            cache_tokens=sum(text.read + text.written for text in texts),
            cache_capacity=len(self._slots) * self.length,
            prefix_hits=self._hits,
            generated=self._generated,
        )

    def step(self) -> list[Event]:
        """Let requests leave and join, read some of their prompts, write a few tokens of each text."""
        with nullcontext() if self._mesh.empty else jax.set_mesh(self._mesh):
            self._drop_cancelled()
            for slot, text in enumerate(self._slots):
                if text is None and self._queue:
                    self._slots[slot] = self._queue.popleft()
            events = self._read_prompts()
            if any(text is not None and self._writes(text) for text in self._slots):
                events.extend(self._collect(self._decode()))
            return events

    def _decode(self) -> Written:
        """Write a chunk; with a grammar in one of the rows a token, since the host has to say which may come next."""
        matchers = [text.matcher if text and self._writes(text) else None for text in self._slots]
        steps = 1 if any(matchers) else self.chunk
        # An engine that may get grammars has masks always, so that one program serves them and all else.
        allowed_BW = masks(matchers, self.module.config.tokenizer.vocab_size) if self.grammars else None
        self._state, written = decode_chunk(
            self.module, self.chunk, self.top, self.params, self._state, allowed_BW, np.int32(steps)
        )
        return jax.tree.map(lambda array: array[:, :steps] if array.ndim > 1 else array, jax.device_get(written))

    def _check(self, request: Request) -> None:
        config, V = self.module.config, self.module.config.tokenizer.vocab_size
        if not request.tokens:
            raise ConfigError("The prompt is empty: it needs at least one token.")
        for name, tokens in (("tokens", request.tokens), ("source", request.source or ())):
            if wrong := [token for token in tokens if not 0 <= token < V]:
                raise ConfigError(f"{name}: there is no token {wrong[0]}; they go from 0 to {V - 1}.")
        request.sampling.check_tokens(V)
        if request.max_tokens < (0 if request.prompt_logprobs else 1):
            raise ConfigError(f"max_tokens={request.max_tokens}: it must be at least 1.")
        if not 0 <= request.top <= self.top:
            raise ConfigError(f"top={request.top}: it must be from 0 to {self.top}.")
        if len(request.ends) > ENDS:
            raise ConfigError(f"ends: {len(request.ends)} tokens; at most {ENDS} may end a text.")
        longest = self.length - (1 if request.max_tokens else 0)
        check_length(config, len(request.tokens))
        if len(request.tokens) > longest:
            raise ConfigError(
                f"The prompt has {len(request.tokens)} tokens, and there is room for {longest}: shorten it."
            )
        if len(request.sampling.forced) > self.length - len(request.tokens):
            raise ConfigError(f"--forced: there is no room for {len(request.sampling.forced)} tokens after the prompt.")
        if request.grammar is not None:
            self._check_grammar(request)
        if translates(config) != (request.source is not None):
            raise ConfigError(
                f"A network of the kind {config.model.network} takes a source if it translates, only then."
            )
        if request.source is not None:
            check_length(config, len(request.source))
            if not 1 <= len(request.source) <= self.source_length:
                raise ConfigError(
                    f"What is translated has {len(request.source)} tokens: it must be 1 to {self.source_length}."
                )

    def _check_grammar(self, request: Request) -> None:
        if self.grammars is None:
            raise ConfigError("grammar: this engine was made without the tokenizer's grammars.")
        if not set(request.ends) & set(self.grammars.ends):
            raise ConfigError("grammar: the text has to end with a token that ends texts; add those to `ends`.")
        if request.sampling.forced:
            raise ConfigError("--forced contradicts a grammar, which says itself what may be written.")

    def _rows(self, request: Request, limit: int) -> Rows:
        """The row of a request, as arrays of the host with one row."""
        return Rows.of(
            [request.tokens], [request.sampling], self.module.config.tokenizer.vocab_size,
            limits=[limit], seeds=[request.seed], ends=[request.ends], tops=[request.top],
            max_ends=ENDS, max_forced=self.length,
        )  # fmt: skip

    def _writes(self, text: _Text) -> bool:
        return text.read == len(text.request.tokens)

    def _drop_cancelled(self) -> None:
        self._queue = deque(text for text in self._queue if not text.cancelled)
        for slot, text in enumerate(self._slots):
            if text is not None and text.cancelled:
                self._slots[slot] = None
                if self._writes(text):
                    self._state = dataclasses.replace(self._state, rows=stop(self._state.rows, np.int32(slot)))

    def _read_prompts(self) -> list[Event]:
        """Read up to PIECES pieces of prompts, the earliest request's first; return those that end with it."""
        events: list[Event] = []
        reading = [(text.ticket, slot) for slot, text in enumerate(self._slots) if text and not self._writes(text)]
        pieces = 0
        for _, slot in sorted(reading):
            text = self._slots[slot]
            assert text is not None
            while pieces < PIECES and not self._writes(text):
                pieces += self._read_piece(slot, text)
            if self._writes(text) and not text.limit:
                events.append(Event(text.ticket, (), tuple(text.prompt)))
                self._slots[slot] = None
        return events

    def _read_piece(self, slot: int, text: _Text) -> bool:
        """Read the next piece of a prompt, or copy it; return whether anything was computed."""
        tokens, start, row = text.request.tokens, np.int32(text.read), np.int32(slot)
        piece = np.array(tokens[text.read : text.read + PIECE], np.int32)
        last = text.read + len(piece) == len(tokens)
        text.digest = hashlib.blake2b(text.digest + piece.tobytes(), digest_size=16).digest()
        # The last piece is always computed: it tells what comes next.
        block = None if last or text.request.prompt_logprobs else self._blocks.get(text.digest)
        if block is not None:
            self._blocks.move_to_end(text.digest)
            self._state = dataclasses.replace(self._state, cache=put_block(self._state.cache, row, start, block))
            text.read += PIECE
            self._hits += PIECE
            return False
        source = None
        if text.request.source is not None and text.read == 0:
            source = padded_source(
                text.request.source, min(source_bucket(len(text.request.source)), self._source_slots)
            )
        padded_C, scores = np.zeros(PIECE, np.int32), text.request.prompt_logprobs
        padded_C[: len(piece)] = piece
        length = np.int32(len(piece))
        cache, hidden_1CD = read_piece(
            self.module, self.params, self._state.cache, row, padded_C, start, length, source
        )
        self._state = dataclasses.replace(self._state, cache=cache)
        if scores:
            logits_CV = piece_logits(self.module, True, self.params, hidden_1CD, length)
            self._report_prompt(text, logits_CV[: len(piece)])
        text.read += len(piece)
        if last:
            one = self._rows(text.request, text.limit)
            logits_V = piece_logits(self.module, False, self.params, hidden_1CD, length)[0]
            self._state = dataclasses.replace(self._state, rows=enter(self._state.rows, row, one, logits_V))
        elif self._max_blocks and text.digest not in self._blocks:
            self._blocks[text.digest] = take_block(cache, row, start)
            if len(self._blocks) > self._max_blocks:
                self._blocks.popitem(last=False)
        return True

    def _report_prompt(self, text: _Text, logits_CV: jax.Array) -> None:
        """The tokens behind each of the piece's, with what the network gave them."""
        logprobs_CV = np.asarray(jax.nn.log_softmax(logits_CV))
        if not text.prompt:
            text.prompt.append(Token(text.request.tokens[0], float("nan")))
        following = text.request.tokens[text.read + 1 : text.read + 1 + len(logprobs_CV)]
        for token, logprobs_V in zip(following, logprobs_CV, strict=False):
            top = tuple((int(other), float(logprobs_V[other])) for other in likeliest(logprobs_V, text.request.top))
            text.prompt.append(Token(token, float(logprobs_V[token]), top))

    def _collect(self, written: Written) -> list[Event]:
        """What the loop wrote, for each request; those that have ended leave."""
        tokens_BC, logprobs_BC, top_BCK, top_logprobs_BCK, _ = written
        events = []
        for slot, text in enumerate(self._slots):
            if text is None or not self._writes(text):
                continue
            request, tokens = text.request, []
            prompt = tuple(text.prompt) if request.prompt_logprobs and not text.written else None
            for place in range(tokens_BC.shape[1]):
                id = int(tokens_BC[slot, place])
                text.written += 1
                if text.matcher:
                    text.matcher.take(id)
                finish = "end" if id in request.ends else "length" if text.written == text.limit else ""
                found = (array[slot, place, : request.top] for array in (top_BCK, top_logprobs_BCK))
                top = tuple((int(other), float(logprob)) for other, logprob in zip(*found, strict=True))
                tokens.append(Token(id, float(logprobs_BC[slot, place]), top, finish))
                if finish:
                    self._slots[slot] = None
                    break
            self._generated += len(tokens)
            events.append(Event(text.ticket, tuple(tokens), prompt))
        return events
