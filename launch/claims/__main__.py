"""Put the story's claims to the test: each is trained, measured, and drawn on one page.

  uv run -m launch.claims                                        all of them
  uv run -m launch.claims --fast                                 less of each, in minutes
  uv run -m launch.claims --only=average,pronoun --json          some of them, as JSON

Writes claims.html, which opens offline, and claims.json to the folder of --out. What was found there before is not
measured again: stopped, the same command goes on with what is missing. Exit status 1 if something did not come out.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence

from absl import flags

from configs.schema import ConfigError
from launch import start
from launch.claims import (
    alignment,
    average,
    circuits,
    distribution,
    few_shot,
    heads,
    in_context,
    induction,
    parallel,
    pronoun,
    reach,
    statistics,
)
from launch.claims.claim import Chart, Check, Claim, Outcome, Setup

FLAGS = flags.FLAGS
TITLE = "What is said of attention, and what comes out"
CLAIMS = (
    Claim("average", "Attention is a weighted average of values.", average.run),
    Claim("reach", "Attention reaches far where an LSTM forgets.", reach.run),
    Claim("parallel", "It trains in parallel.", parallel.run),
    Claim("heads", "Heads divide the work.", heads.run),
    Claim("induction", "Over layers, too: one head notes, another finds.", induction.run),
    Claim("alignment", "Cross-attention aligns what is written with what is read.", alignment.run),
    Claim("circuits", "In a larger network, too, single heads have work of their own.", circuits.run),
    Claim("distribution", "The output is a distribution, to be taken at its word and drawn from.", distribution.run),
    Claim("statistics", "It learns the statistics of language.", statistics.run),
    Claim("few_shot", "A few examples are enough.", few_shot.run),
    Claim("in_context", "What the examples have in common can be new in every row.", in_context.run),
    Claim("pronoun", "“It” is the animal or the street, and the last word decides.", pronoun.run),
)


def define(_: Sequence[str]) -> None:
    """The flags of this program."""
    names = ", ".join(claim.name for claim in CLAIMS)
    flags.DEFINE_list("only", [], f"Which claims, comma-separated; empty is all: {names}.")
    flags.DEFINE_boolean("fast", False, "Less training, and fewer texts: the same directions in minutes.")
    flags.DEFINE_boolean("force", False, "Measure again what has been found before; what is trained is kept.")
    flags.DEFINE_string("checkpoint", "runs/quickstart", "A language model that was trained here: a run folder.")
    flags.DEFINE_string("causal", "smollm2", "A larger one that predicts the next token; empty for none.")
    flags.DEFINE_string("out", "", "The folder to write to; empty is runs/claims, or runs/claims_fast.")
    flags.DEFINE_boolean("json", False, "Print one JSON object for each claim.")


def run() -> int:
    """Put each claim to the test, tell what came out, and write the page."""
    chosen = _chosen(FLAGS.only)
    start.prepare_jax()
    out = pathlib.Path(FLAGS.out or ("runs/claims_fast" if FLAGS.fast else "runs/claims"))
    setup = Setup(out, FLAGS.fast, FLAGS.checkpoint, FLAGS.causal)
    _check_trained(setup)
    found = []
    for number, claim in enumerate(chosen, start=1):
        print(f"[{number}/{len(chosen)}] {claim.sentence}", file=sys.stderr)
        outcome, seconds = _find(claim, setup)
        found.append((claim, outcome, seconds))
        _tell(claim, outcome, seconds)
    from launch.claims.page import claims_page
    from train.storage import write_atomically

    command = "uv run -m launch.claims " + shlex.join(sys.argv[1:])
    write_atomically(out / "claims.html", claims_page(TITLE, command.strip(), found))
    write_atomically(out / "claims.json", json.dumps([_record(*entry) for entry in found], indent=2))
    print(out / "claims.html", file=sys.stderr)
    return 0 if all(check.holds for _, outcome, _ in found for check in outcome.checks) else 1


def _chosen(names: Sequence[str]) -> list[Claim]:
    by_name = {claim.name: claim for claim in CLAIMS}
    for name in names:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"--only={name}: there is no such claim; there are {', '.join(by_name)}.{hint}")
    return [by_name[name] for name in names] or list(CLAIMS)


def _check_trained(setup: Setup) -> None:
    folder = setup.checkpoint.partition("@")[0]
    if not pathlib.Path(folder).exists():
        raise ConfigError(
            f"--checkpoint={setup.checkpoint}: there is no such run; `uv run -m launch.train --run={folder}` trains it."
        )


def _find(claim: Claim, setup: Setup) -> tuple[Outcome, float]:
    """What comes out of a claim, or what came out before, and how many seconds it took."""
    from train.storage import write_atomically

    path = setup.out / f"{claim.name}.json"
    asked = {"fast": setup.fast, "checkpoint": setup.checkpoint, "causal": setup.causal}
    if path.exists() and not FLAGS.force:
        kept = json.loads(path.read_text("utf-8"))
        if kept["asked"] == asked:
            return _outcome(kept), kept["seconds"]
    began = time.perf_counter()
    outcome = claim.run(setup)
    seconds = time.perf_counter() - began
    setup.out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"asked": asked, **_record(claim, outcome, seconds)}))
    return outcome, seconds


def _record(claim: Claim, outcome: Outcome, seconds: float) -> dict[str, object]:
    """What came out, for JSON."""
    holds = all(check.holds for check in outcome.checks)
    return {"name": claim.name, "holds": holds, "seconds": round(seconds, 1), **dataclasses.asdict(outcome)}


def _outcome(record: dict) -> Outcome:
    """The inverse of `_record`."""
    checks, charts = [Check(**check) for check in record["checks"]], [Chart(**chart) for chart in record["charts"]]
    return Outcome(checks, record["figures"], charts, record["notes"])


def _tell(claim: Claim, outcome: Outcome, seconds: float) -> None:
    if FLAGS.json:
        print(json.dumps(_record(claim, outcome, seconds)), flush=True)
        return
    print(f"{claim.sentence}  ({claim.name}, {seconds:.0f} s)")
    for check in outcome.checks:
        print(f"  {'yes' if check.holds else 'NO '}  {check.told()}")
    for note in outcome.notes:
        print(f"  {note}")
    sys.stdout.flush()


if __name__ == "__main__":
    start.program("launch.claims", __doc__ or "", run, define, sys.argv)
