"""How well a network does a task that is made up: which of the words that can be known it knows.

Shapes: B rows, T length, L layers, N heads, S source tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from model import Source, build
from model.lens.places import WEIGHTS
from model.lens.record import record
from train.checkpoint import Restored
from train.data.pipeline import Batch, held_out_batches
from train.data.sources import open_corpus
from train.step import network_inputs


def accuracy(restored: Restored, batches: int = 4) -> float:
    """Of the words of held-out rows that are asked for, the share that the network holds for the likeliest."""
    right, asked = 0, 0
    for logits_BTV, batch in itertools.islice(answers(restored), batches):
        asked_BT = batch["weights"] != 0
        right += int((logits_BTV.argmax(axis=-1) == batch["targets"])[asked_BT].sum())
        asked += int(asked_BT.sum())
    return right / asked


def answers(restored: Restored) -> Iterator[tuple[np.ndarray, Batch]]:
    """What the network says of held-out rows, logits_BTV, and these rows, batch by batch."""
    config, module = restored.config, build(restored.config)
    for batch in held_out_batches(open_corpus(config.data), restored.tokenizer, config):
        inputs = network_inputs({name: jnp.asarray(x) for name, x in batch.items()})
        yield np.asarray(module.apply({"params": restored.params}, **inputs)), batch


def looks_back(restored: Restored, batch: Batch) -> np.ndarray:
    """How much attention each head pays to what stands D = 0, 1, 2, ... words before the last that it sees, [L,N,D].

    The mean over what is asked for in a batch of rows.
    """
    found = record(build(restored.config), restored.params, jnp.asarray(batch["inputs"]), WEIGHTS[:1])
    weights_LBNTS = np.asarray(found[WEIGHTS[0]])
    rows, places = np.nonzero(batch["weights"])
    return np.stack(
        [weights_LBNTS[:, rows, :, places, places - back].mean(axis=0) for back in range(places.min() + 1)], axis=-1
    )


def backwards(restored: Restored, length: int = 9, count: int = 40) -> np.ndarray:
    """On `--data.source=reversal`, how often each head looks most at the word to be written, [L,N].

    Of held-out rows of `length` words, `count` at most.
    """
    tokenizer = restored.tokenizer
    held_out = open_corpus(restored.config.data).held_out
    pairs = (held_out[number] for number in range(len(held_out)))
    chosen = list(itertools.islice((pair for pair in pairs if len(pair.text.split()) == length), count))
    sources_BS = np.array([tokenizer.source(pair.source) for pair in chosen], np.int32)
    read_BT = np.array([[tokenizer.start_of_target, *tokenizer.encode(pair.text)] for pair in chosen], np.int32)
    found = record(
        build(restored.config), restored.params, jnp.asarray(read_BT), WEIGHTS[1:], Source.of(jnp.asarray(sources_BS))
    )
    looks_LBNT = np.asarray(found[WEIGHTS[1]]).argmax(axis=-1)[..., :length]
    return (looks_LBNT == np.arange(length)[::-1]).mean(axis=(1, 3))
