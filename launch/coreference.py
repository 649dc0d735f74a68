"""What does *it* stand for? "The animal didn't cross the street because it was too tired", or "too wide".

  uv run -m launch.train --config=coreference
  uv run -m launch.train --config=coreference --model.network=decoder --run=runs/coreference_causal
  uv run -m launch.coreference

The first two train a network that reads in both directions, and its twin that reads from left to right, in under a
minute each. The third trains nothing: it writes coreference.html, which opens offline, coreference.png and
coreference.svg.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import start

if TYPE_CHECKING:
    from train.checkpoint import Restored
    from train.pronouns import HeldOut, Reading

FLAGS = flags.FLAGS
TITLE = "What does “it” stand for?"
TRAIN = "uv run -m launch.train --config=coreference"


def define(_: Sequence[str]) -> None:
    """The flags of this program."""
    flags.DEFINE_string("checkpoint", "runs/coreference", "The run that reads in both directions (or DIR@STEP).")
    flags.DEFINE_string("twin", "runs/coreference_causal", "The run that reads from left to right; empty for none.")
    flags.DEFINE_string("out", ".", "The folder to write coreference.html, .png and .svg to.")
    flags.DEFINE_boolean("json", False, "Print the numbers as one JSON object instead.")


def run() -> None:
    """Restore both networks, read the two sentences and all held-out ones, show it."""
    start.prepare_jax()
    from train.checkpoint import restore_params
    from train.pronouns import check_can_read, held_out, patched, story

    names = {"checkpoint": FLAGS.checkpoint} | ({"twin": FLAGS.twin} if FLAGS.twin else {})
    check_trained(names)
    networks = {name: restore_params(spec) for name, spec in names.items()}
    for name, restored in networks.items():
        check_can_read(restored, f"--{name}={names[name]}")
    readings = {name: story(restored) for name, restored in networks.items()}
    scores = {name: held_out(restored) for name, restored in networks.items()}
    patched_LT = patched(networks["checkpoint"])
    if FLAGS.json:
        numbers = {name: _numbers(readings[name], scores[name]) for name in networks}
        print(json.dumps({**numbers.pop("checkpoint"), "patched": patched_LT.tolist(), **numbers}))
        return
    _write(networks, readings, scores, patched_LT)


def check_trained(names: dict[str, str]) -> None:
    """Raises ConfigError with the command that trains what is not there, of --checkpoint and --twin."""
    from configs.schema import ConfigError

    for name, spec in names.items():
        folder = spec.partition("@")[0]
        if not pathlib.Path(folder).exists() and not pathlib.Path(spec).exists():
            kind = " --model.network=decoder" if name == "twin" else ""
            without = ", and --twin= does without it" if name == "twin" else ""
            raise ConfigError(
                f"--{name}={spec}: there is no such run; `{TRAIN}{kind} --run={folder}` trains it{without}."
            )


def _numbers(readings: Sequence[Reading], score: HeldOut) -> dict[str, Any]:
    """What --json prints of one network."""
    return {
        "sentences": [
            {
                "text": reading.text,
                "tokens": reading.tokens,
                "it": reading.at,
                "probability": reading.probability,
                "rollout": reading.rollout,
                "draws_from": reading.draws_from(),
            }
            for reading in readings
        ],
        "identical_at_it": _identical(readings),
        "held_out": dataclasses.asdict(score),
    }


def _identical(readings: Sequence[Reading]) -> bool:
    """Whether all that the network computes at *it* comes to the same in both sentences, bit for bit."""
    first, second = readings
    return first.output.tobytes() == second.output.tobytes()


def _write(
    networks: dict[str, Restored],
    readings: dict[str, list[Reading]],
    scores: dict[str, HeldOut],
    patched_LT: Any,
) -> None:
    from launch.views.pronoun import NetworkView, SentenceView, pronoun_page, pronoun_png, pronoun_svg
    from train.pronouns import WORDS

    views, facts = [], []
    for name, restored in networks.items():
        title, note = _described(restored, identical=_identical(readings[name]))
        sentences = [SentenceView(r.tokens, r.at, r.rollout, r.probability) for r in readings[name]]
        views.append(NetworkView(title, note, sentences))
        facts += [(f"{title}: {what}", value) for what, value in _facts(scores[name])]
    model = networks["checkpoint"].config.model
    subtitle = (
        f"{model.num_layers} layers of width {model.width}; in training “animal” and “street” never stood together. "
        f"Lines and percentages: the share of each word in what stands at “it” (attention rollout)."
    )
    svg = pronoun_svg(TITLE, subtitle, views, patched_LT, WORDS[1])
    made = "uv run -m launch.coreference " + shlex.join(sys.argv[1:])
    commands = [TRAIN, f"{TRAIN} --model.network=decoder --run=runs/coreference_causal", made.strip()]
    out = pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    written = {
        "coreference.html": pronoun_page(TITLE, svg, facts, commands).encode(),
        "coreference.svg": svg.encode(),
        "coreference.png": pronoun_png(svg),
    }
    for name, content in written.items():
        (out / name).write_bytes(content)
        print(out / name)
    for what, value in facts:
        print(f"  {what}: {value}")


def _described(restored: Restored, identical: bool) -> tuple[str, str]:
    """What kind of network it is, and what that means here."""
    if restored.config.model.network == "encoder":
        return "Reads in both directions", "every word sees all others, so the last word can decide"
    same = "what it computes at “it” is the same in both, bit for bit" if identical else "it has not come yet at “it”"
    return "Reads from left to right", f"trained on the same, but the last word comes after “it”: {same}"


def _facts(score: HeldOut) -> list[tuple[str, str]]:
    return [
        (
            f"probability of the right noun, {score.sentences:,} sentences with {score.pairs} pairs",
            f"{score.probability:.4f} on average, {score.lowest:.4f} at least",
        ),
        ("the right noun is the likelier one", f"{score.right:.2%}"),
        ("“it” draws more from the right noun, whichever the last word (rollout)", f"{score.flips:.2%}"),
    ]


if __name__ == "__main__":
    start.program("launch.coreference", __doc__ or "", run, define, sys.argv)
