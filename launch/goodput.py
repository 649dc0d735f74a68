"""Where the time of a run went: in steps that were kept, and in everything else, over all its starts.

  uv run -m launch.goodput --run=runs/quickstart            a table, and goodput.html beside the run's report
  uv run -m launch.goodput --run=runs/quickstart --json

Reads goodput.jsonl, which training writes; a run that is under way is shown as far as it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from absl import flags

from launch import start

FLAGS = flags.FLAGS


def define(_: Sequence[str]) -> None:
    """The flags of this program."""
    flags.DEFINE_string("run", "runs/quickstart", "The run folder.")
    flags.DEFINE_boolean("json", False, "Print one JSON object with `total`, `share`, `starts` and `seconds` by kind.")


def run() -> None:
    """Read the ledger, show it."""
    from launch.views.goodput import goodput_page, rows
    from train.goodput import FILE, read
    from train.storage import RunFolderError, place, reading, write_atomically

    folder = place(FLAGS.run)
    with reading(folder):
        found = read(folder)
    if found is None:
        raise RunFolderError(f"--run={folder} has no {FILE}: it is no run folder, or no run has been started there.")
    if FLAGS.json:
        numbers = {"total": found.total, "share": found.share, "starts": found.starts, "steps": found.steps}
        print(json.dumps({**numbers, "seconds": found.seconds}))
        return
    for name, seconds, share in rows(found):
        print(f"{seconds:12,.1f} s  {share:6.1%}  {name}")
    path = folder / "goodput.html"
    write_atomically(path, goodput_page(found, folder.name))
    print(path)


if __name__ == "__main__":
    start.program("launch.goodput", __doc__ or "", run, define, sys.argv)
