"""What can be seen inside a checkpoint, from its name and a text: a view that is a page, a picture or numbers.

In a notebook,

  from launch.pictures import Asked, see
  see("runs/quickstart", "heads", Asked(["def area(width, height):"]))

shows itself. Shapes: L layers, N heads, B texts, T tokens, V vocabulary, K candidates.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.check import check_length
from configs.derived import fills_in, is_recurrent, translates
from configs.schema import ConfigError
from launch.look import check_attends, count, logits, look_at, look_at_translation, looped, read_ids
from launch.progress import Done
from launch.silencing import CANDIDATES, knocked, knocked_alignment
from launch.views.alignment import AlignmentView
from launch.views.attention import HeadsView, telling_head
from launch.views.attention_panels import Seen
from launch.views.evolution import EvolutionView
from launch.views.grid import GridView
from launch.views.knockout import KnockoutView
from launch.views.lens import LensView
from launch.views.model import ModelView
from launch.views.patch import PatchView
from launch.views.pieces import Pieces, ends_at
from launch.views.structure import structure_svg
from launch.views.tokens import Expected, TokensView
from launch.views.view import About, View
from model import build
from model.generate.choose import likeliest
from model.lens.context import token_losses
from model.lens.heads import head_scores
from model.lens.knockout import knock_out_heads
from model.lens.logits import logit_lens
from model.lens.patch import patch_everywhere
from model.lens.record import record
from model.lens.rest import OnLayer
from train.checkpoint import CheckpointError, Restored, find, finished_steps, restore_params
from train.scoring import given_logprobs

DRAWN, PROBES = 24, 4  # Where no text is given: tokens that stand twice in a text, and such texts.
LONGEST_PICTURE = 256  # Tokens: beyond that the squares are smaller than a pixel, and hovering is slow.
LONGEST_JSON = 2048  # Tokens: all weights are kept in memory, and their number grows with the square.


@dataclass(frozen=True)
class Asked:
    """What is to be looked at."""

    texts: Sequence[str] = ()  # one, where a view is not of several; by default random tokens, twice the same
    target: str | None = None  # of `alignment`: the translation; by default what the network writes greedily
    other: str | None = None  # of `patch`: the other text
    checkpoint: str = ""  # of `evolution`: set by `see`
    head: tuple[int, int] | None = None  # of `grid`: layer and head; by default a telling one
    word: str | None = None  # of `heads`, `grid` and `alignment`: who looks; by default a telling token
    drawn: bool = True  # whether more than numbers is wanted
    on_done: Done | None = None  # is told what is counted, how many are done, and how many there are

    @property
    def on_layer(self) -> OnLayer | None:
        """To be told how many layers were done without their heads, or patched."""
        return None if self.on_done is None else partial(self.on_done, "layers")


def see(checkpoint: str, view: str | None, asked: Asked, command: str = "") -> View:
    """What there is to be seen in a checkpoint.

    Args:
      checkpoint: as --checkpoint takes it.
      view: one of VIEWS; by default `alignment` of a network that translates, else `heads`.
      command: what was typed to see this, which the picture will say.

    Raises:
      ConfigError: this network has no such view, or it is not of these texts.
    """
    restored = restore_params(checkpoint)
    view = view or ("alignment" if translates(restored.config) else "heads")
    if view != "alignment" and translates(restored.config):
        raise ConfigError(
            f"--view={view} is of networks that read one text, and this is --model.network="
            f"{restored.config.model.network}: use --view=alignment, which shows its encoder and decoder as well."
        )
    return VIEWS[view](restored, dataclasses.replace(asked, checkpoint=checkpoint), command)


def about(restored: Restored, text: str, command: str) -> About:
    """What a picture of this network says of itself."""
    structure = structure_svg(restored.config, count(restored.params))
    return About(f"{restored.config.name}, step {restored.step}", text, command, structure)


def heads(restored: Restored, asked: Asked, command: str) -> View:
    """All heads on one text."""
    seen, ids = _seen(restored, asked)
    check = knocked(restored, ids, len(ids) - 1, asked.on_layer)
    word = None if asked.word is None else ends_at(asked.word, seen.queries.texts)
    return HeadsView(about(restored, _text(restored, asked, ids), command), seen, check, word)


def model(restored: Restored, asked: Asked, command: str) -> View:
    """All heads with what each looks for."""
    seen, ids = _seen(restored, asked)
    weights_LBNTS, tokens_1T = jnp.asarray(seen.weights_LNTS)[:, None], jnp.array([ids], jnp.int32)
    scores = {name: np.asarray(of_LN) for name, of_LN in head_scores(weights_LBNTS, tokens_1T).items()}
    changes_LN = None
    if not fills_in(restored.config) and len(ids) > 1:
        found_LNB = knock_out_heads(
            looped(restored), restored.params, tokens_1T, counted_BT=_counted(asked, [ids]), on_layer=asked.on_layer
        )
        changes_LN = np.asarray(found_LNB[:, :, 0])
    return ModelView(about(restored, _text(restored, asked, ids), command), seen, scores, changes_LN)


def grid(restored: Restored, asked: Asked, command: str) -> View:
    """One head on one text."""
    L, N = restored.config.model.num_layers, restored.config.model.num_heads
    if asked.head is not None and not (0 <= asked.head[0] < L and 0 <= asked.head[1] < N):
        there = f"this network has layers 0 to {L - 1} of heads 0 to {N - 1}."
        raise ConfigError(f"--layer={asked.head[0]} --head={asked.head[1]}: {there}")
    seen, ids = _seen(restored, asked)
    word = None if asked.word is None else ends_at(asked.word, seen.queries.texts)
    picked = telling_head(seen.in_pieces().weights_LNTS, word) if asked.head is None else asked.head
    check = knocked(restored, ids, len(ids) - 1, asked.on_layer)
    return GridView(about(restored, _text(restored, asked, ids), command), seen, picked, check)


def tokens(restored: Restored, asked: Asked, command: str) -> View:
    """How well a text was expected."""
    _check_predicts(restored, "tokens")
    (ids,) = _ids(restored, asked)
    begun, tokenizer = len(restored.tokenizer.beginning), restored.tokenizer
    before, given = ids[:begun], ids[begun:]
    if not given:
        raise ConfigError("--text has nothing to predict: make it longer.")
    logprobs_TV = given_logprobs(looped(restored), restored.params, before, given)
    entropies_T = -np.sum(np.exp(logprobs_TV) * logprobs_TV, -1)
    expected = [Expected(tokenizer.token_text(id), None, None, ()) for id in before]
    for id, logprobs_V, entropy in zip(given, logprobs_TV, entropies_T, strict=True):
        top = [(tokenizer.token_text(int(k)), float(np.exp(logprobs_V[k]))) for k in likeliest(logprobs_V, CANDIDATES)]
        expected.append(Expected(tokenizer.token_text(id), float(logprobs_V[id]), float(entropy), top))
    pieces = Pieces.of(tokenizer, ids)
    ends = [*pieces.starts[1:], len(ids)]
    whole = [
        _together(name, expected[start:end]) for name, start, end in zip(pieces.texts, pieces.starts, ends, strict=True)
    ]
    return TokensView(about(restored, _text(restored, asked, ids), command), expected, whole)


def patch(restored: Restored, asked: Asked, command: str) -> View:
    """Where two texts come to differ."""
    _check_predicts(restored, "patch")
    if is_recurrent(restored.config):
        raise ConfigError(
            f"--view=patch: --model.network={restored.config.model.network} has no layers to patch by token."
        )
    if asked.other is None:
        raise ConfigError("--view=patch needs --other: a text of as many tokens as --text, with another continuation.")
    tokenizer, (ids,) = restored.tokenizer, _ids(restored, asked)
    other = read_ids(tokenizer, asked.other)
    names, others = [tokenizer.token_text(id) for id in ids], [tokenizer.token_text(id) for id in other]
    if len(ids) != len(other):
        raise ConfigError(
            f"--text has {len(ids)} tokens and --other {len(other)}, and both must have as many: {names} and {others}."
        )
    if ids == other:
        raise ConfigError("--other is the same text as --text.")
    module, at = looped(restored), len(ids) - 1
    ids_1T, other_1T = jnp.array([ids], jnp.int32), jnp.array([other], jnp.int32)
    ends_2V = np.asarray(logits(module, restored.params, jnp.concatenate([ids_1T, other_1T]))[:, -1], np.float64)
    p_2V = np.asarray(jax.nn.softmax(ends_2V))
    ours, theirs = int((p_2V[0] - p_2V[1]).argmax()), int((p_2V[1] - p_2V[0]).argmax())
    patched_LTBV = patch_everywhere(
        module, restored.params, ids_1T, other_1T, at, "layers/residual/before", on_layer=asked.on_layer
    )
    patched_LT = np.asarray(patched_LTBV[:, :, 0, theirs] - patched_LTBV[:, :, 0, ours], np.float64)
    first, second = (ends_2V[:, theirs] - ends_2V[:, ours]).tolist()
    return PatchView(
        about(restored, _text(restored, asked, ids), command), names, asked.other, others,
        (tokenizer.token_text(ours), tokenizer.token_text(theirs)), (first, second), patched_LT,
    )  # fmt: skip


def lens(restored: Restored, asked: Asked, command: str) -> View:
    """What would be predicted after each layer."""
    _check_predicts(restored, "lens")
    if is_recurrent(restored.config):
        raise ConfigError(f"--view=lens: --model.network={restored.config.model.network} has no layers to read early.")
    module, tokenizer, (ids,) = looped(restored), restored.tokenizer, _ids(restored, asked)
    places = ("layers/residual/before", "layers/residual/after")
    found = record(module, restored.params, jnp.array([ids], jnp.int32), places)
    stream_RBTD = jnp.concatenate([found[places[0]][:1], found[places[1]]])
    following_T = jnp.array([*ids[1:], 0], jnp.int32)
    top_RT, probability_RT, entropy_RT, following_RT = map(
        np.array, _read_early(module, restored.params, stream_RBTD, following_T)
    )
    following_RT[:, -1] = np.nan
    return LensView(
        about(restored, _text(restored, asked, ids), command), Pieces.of(tokenizer, ids),
        [[tokenizer.token_text(id) for id in row] for row in top_RT.tolist()], probability_RT, entropy_RT, following_RT,
    )  # fmt: skip


def knockout(restored: Restored, asked: Asked, command: str) -> View:
    """Which heads the network needs for some texts."""
    _check_predicts(restored, "knockout")
    texts = _ids(restored, asked) if asked.texts else repeated(restored, PROBES)
    if min(map(len, texts)) < 2:
        raise ConfigError("--text has nothing to predict: make it longer.")
    longest = max(map(len, texts))
    segments_BT = jnp.array([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts], jnp.int32)
    tokens_BT = jnp.array([ids + [0] * (longest - len(ids)) for ids in texts], jnp.int32)
    module, params, counted_BT = looped(restored), restored.params, _counted(asked, texts)
    changes_LNB = knock_out_heads(
        module, params, tokens_BT, segments_BT=segments_BT, counted_BT=counted_BT, on_layer=asked.on_layer
    )
    losses_B = np.average(token_losses(module, params, tokens_BT), axis=-1, weights=counted_BT[:, 1:])
    shown = _text(restored, asked, texts[0]) + (f"  … and {len(texts) - 1} more texts" if len(texts) > 1 else "")
    return KnockoutView(about(restored, shown, command), np.asarray(changes_LNB), losses_B)


def evolution(restored: Restored, asked: Asked, command: str) -> View:
    """What heads look for at each checkpoint of a run."""
    _check_predicts(restored, "evolution")
    check_attends(restored.config)
    try:
        folder, _ = find(asked.checkpoint)
    except CheckpointError:
        raise ConfigError(f"--view=evolution needs the checkpoints of a run, and {asked.checkpoint} is none.") from None
    steps, module, (ids,) = finished_steps(folder), looped(restored), _ids(restored, asked)
    tokens_1T, (counted_T,) = jnp.array([ids], jnp.int32), _counted(asked, [ids])
    losses, scores = [], []
    for number, step in enumerate(steps):
        if asked.on_done is not None:
            asked.on_done("checkpoints", number, len(steps))
        params = restore_params(f"{folder}@{step}").params
        found = record(module, params, tokens_1T)
        scores.append(head_scores(found["layers/attention/weights"], tokens_1T))
        losses.append(np.average(token_losses(module, params, tokens_1T)[0], weights=counted_T[1:]))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    training = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    by_name = {name: np.stack([np.asarray(of[name]) for of in scores]) for name in scores[0]}
    return EvolutionView(
        about(restored, _text(restored, asked, ids), command), steps, np.array(losses), by_name, training
    )  # fmt: skip


def alignment(restored: Restored, asked: Asked, command: str) -> View:
    """From which words each word of a translation was written."""
    if not translates(restored.config):
        raise ConfigError(
            f"--view=alignment is of networks that translate, and this is --model.network="
            f"{restored.config.model.network}."
        )
    (text,) = asked.texts
    _check_length(max(len(restored.tokenizer.encode(text)) + 1 for text in (text, asked.target or "")), asked)
    translation = look_at_translation(
        build(restored.config), restored.params, restored.tokenizer, text, asked.target,
        max_tokens=restored.config.data.length,
    )  # fmt: skip
    if asked.word is not None:
        word = ends_at(asked.word, translation.alignment.queries.texts)
        translation = dataclasses.replace(translation, looking=word)
    check = knocked_alignment(restored, translation, asked.on_layer)
    return AlignmentView(about(restored, text, command), translation, check)


VIEWS: dict[str, Callable[[Restored, Asked, str], View]] = {
    "heads": heads, "model": model, "grid": grid, "tokens": tokens, "lens": lens, "patch": patch, "knockout": knockout,
    "evolution": evolution, "alignment": alignment,
}  # fmt: skip


def _seen(restored: Restored, asked: Asked) -> tuple[Seen, list[int]]:
    check_attends(restored.config)
    (ids,) = _ids(restored, asked)
    seen = look_at(looped(restored), restored.params, restored.tokenizer, ids)
    if asked.drawn and seen.weights_LNTS.min() < 0:
        raise ConfigError(
            f"--model.attention={restored.config.model.attention} has weights below 0, which are no shares to draw: "
            "use --json."
        )
    return seen, ids


def _ids(restored: Restored, asked: Asked) -> list[list[int]]:
    """The tokens of each text."""
    if not asked.texts:
        return repeated(restored)
    ids = [read_ids(restored.tokenizer, text) for text in asked.texts]
    _check_length(max(map(len, ids)), asked)
    check_length(restored.config, max(map(len, ids)))
    return ids


def repeated(restored: Restored, texts: int = 1) -> list[list[int]]:
    """Tokens drawn at random, twice the same: what only a network that looks back can predict (Olsson et al. 2022)."""
    tokenizer, vocabulary = restored.tokenizer, restored.config.tokenizer.vocab_size
    known = [id for id in range(min(tokenizer.size, vocabulary)) if tokenizer.token_bytes(id)]
    random = np.random.default_rng(0)
    drawn = [random.choice(known, DRAWN, replace=len(known) < DRAWN).tolist() for _ in range(texts)]
    return [[*tokenizer.beginning, *ids, *ids] for ids in drawn]


def _counted(asked: Asked, texts: Sequence[Sequence[int]]) -> jax.Array:
    """Which tokens' losses count [B,T]: of those drawn at random, what can be known of the second copy."""
    counted_BT = np.zeros((len(texts), max(map(len, texts))), np.int32)
    for counted_T, ids in zip(counted_BT, texts, strict=True):
        counted_T[1 if asked.texts else len(ids) - DRAWN + 1 : len(ids)] = 1
    return jnp.asarray(counted_BT)


def _text(restored: Restored, asked: Asked, ids: Sequence[int]) -> str:
    """What the picture says was read."""
    return (
        asked.texts[0]
        if asked.texts
        else "random tokens, twice (losses: the second time): " + restored.tokenizer.decode(ids)
    )


def _check_length(length: int, asked: Asked) -> None:
    longest = LONGEST_PICTURE if asked.drawn else LONGEST_JSON
    if length > longest:
        way_out = f", or use --json (up to {LONGEST_JSON})." if asked.drawn else "."
        raise ConfigError(f"--text has {length} tokens, more than {longest}: shorten it{way_out}")


def _check_predicts(restored: Restored, view: str) -> None:
    if fills_in(restored.config):
        raise ConfigError(
            f"--view={view} is of networks that predict the next token, and this one fills in what is masked."
        )


def _together(text: str, tokens: Sequence[Expected]) -> Expected:
    """Tokens that make up a character, as one."""
    if any(token.logprob is None for token in tokens):
        return Expected(text, None, None, ())
    logprob = sum(token.logprob for token in tokens if token.logprob is not None)
    entropy = sum(token.entropy for token in tokens if token.entropy is not None)
    return Expected(text, logprob, entropy, tokens[0].top)


@partial(jax.jit, static_argnums=0)
def _read_early(
    module: Any, params: Any, stream_RBTD: jax.Array, following_T: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The likeliest token, its probability, the entropy, and the probability of what follows, each [R,T]."""

    def row(x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        logprobs_TV = jax.nn.log_softmax(logit_lens(module, params, x_BTD[None])[0, 0])
        p_TV = jnp.exp(logprobs_TV)
        following_T1 = jnp.take_along_axis(p_TV, following_T[:, None], axis=-1)
        entropy_T = -jnp.sum(p_TV * logprobs_TV, axis=-1)
        return jnp.argmax(p_TV, axis=-1), jnp.max(p_TV, axis=-1), entropy_T, following_T1[:, 0]

    return jax.lax.map(row, stream_RBTD)
