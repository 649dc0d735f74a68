"""How well a network predicts text that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.derived import translates
from configs.schema import Config
from model.sharding import RULES, batch_sharding
from train.data.pairs import languages
from train.data.sections import Corpus
from train.data.tokenizer import Tokenizer
from train.loss import output_loss
from train.processes import rows_held
from train.step import network_inputs, target_weights
from train.translation import held_out_pairs, score
from train.writing import translate_each

Evaluate = Callable[..., dict[str, float] | None]
# Sentences translated at once: so often a run that is asked to stop can do so.
SCORE_BATCH = 32


def make_evaluate(module: Any, byte_lengths_V: np.ndarray, mesh: jax.sharding.Mesh) -> Evaluate:
    """`evaluate(params, batches, stop=lambda: False)`, compiled once, for batches of this process's rows.

    It returns eval/loss (nats per token), eval/bits_per_byte and eval/tokens, or None if `stop()` became
    true between two batches. Bits per byte are the bits for all targets, end_of_text included, by the bytes
    of the text alone (`byte_lengths_V`, int32: the bytes of each token): they don't depend on the tokenizer.
    """

    sums_of = jax.jit(  # So that every process can read them.
        evaluation_sums(module, byte_lengths_V), out_shardings=jax.NamedSharding(mesh, jax.P())
    )

    def evaluate(
        params: Any, batches: Iterable[dict[str, np.ndarray]], stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        total_3, running = np.zeros(3), None
        with jax.set_mesh(mesh):
            for batch in batches:
                if stop():
                    return None
                before, running = running, sums_of(params, put(batch, mesh))
                if before is not None:  # read while the next batch is computed
                    total_3 += np.asarray(before, np.float64)
        if running is not None:
            total_3 += np.asarray(running, np.float64)
        return evaluation_of(total_3)

    return evaluate


def evaluation_sums(module: Any, byte_lengths_V: np.ndarray) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
    """(params, batch) -> nats, targets and bytes of the batch, [3] float32: what `evaluation_of` makes rates of."""

    def sums_of(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        x_BTD: Any = module.apply({"params": params}, **network_inputs(batch), head=False)
        weights_BT = target_weights(batch)
        loss = output_loss(module.config, params, x_BTD, batch["targets"], weights_BT)
        bytes_BT = jnp.where(weights_BT != 0, jnp.asarray(byte_lengths_V)[batch["targets"]], 0)
        return jnp.stack([loss.nll, loss.targets, jnp.sum(bytes_BT).astype(jnp.float32)])

    return sums_of


def evaluation_of(total_3: np.ndarray) -> dict[str, float]:
    """What an evaluation is logged as, of the sums over all batches."""
    nll, tokens, text_bytes = total_3.tolist()
    return {
        "eval/loss": nll / max(tokens, 1),
        "eval/bits_per_byte": nll / math.log(2) / max(text_bytes, 1),
        "eval/tokens": tokens,
    }


def make_score(module: Any, config: Config, corpus: Corpus, tokenizer: Tokenizer) -> Evaluate | None:
    """`score(params, stop=lambda: False)`, or None where there are no translations to score.

    It translates `train.score_sentences` held-out sentences greedily and returns eval/bleu and eval/chrf (0 to 100; see
    `train.translation.score`), or None if `stop()` became true between two batches.
    """
    if not (translates(config) and config.data.languages and config.train.score_sentences):
        return None
    pairs = held_out_pairs(corpus, config.train.score_sentences)
    sources, references = [pair.source for pair in pairs], [pair.text for pair in pairs]

    def score_translations(params: Any, stop: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        texts = [""] * len(pairs)
        done = translate_each(
            module, params, tokenizer, sources, max_tokens=config.data.length, batch=min(SCORE_BATCH, len(pairs))
        )
        for index, text in done:
            if stop():
                return None
            texts[index] = text
        values = score(texts, references, languages(config.data))
        return {"eval/bleu": values["bleu"], "eval/chrf": values["chrf"]}

    return score_translations


def put(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch (`rows_held`), as arrays of the whole batch over the devices of `mesh`."""
    sharding = batch_sharding(mesh)
    shares = math.prod(mesh.shape[axis] for axis in RULES["rows"])
    held = rows_held(mesh, shares)

    def spread(rows: np.ndarray) -> jax.Array:
        share = len(rows) // len(held)

        def of_device(place: Any) -> np.ndarray:
            first = held.index((place[0].start or 0) // share) * share
            return rows[first : first + share]

        return jax.make_array_from_callback((shares * share, *rows.shape[1:]), sharding, of_device)

    return {name: spread(rows) for name, rows in batch.items()}
