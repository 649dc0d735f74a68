"""Makes a run folder as this version of the program writes it, for later versions to open: tests/train/releases/NAME.

  python -m tests.train.make_release 0.1.0

To be run once for each release, and never again for an old one: what matters is what that version wrote.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
import tempfile

import jax.numpy as jnp
import numpy as np

from configs.convert import override
from configs.presets import induction
from model import build
from train.checkpoint import restore_params
from train.loop import train

FOLDER = pathlib.Path(__file__).parent / "releases"
TEXT = " ba de fi go hu ja ke li ba de"
CONFIG = override(
    induction(),
    {
        "name": "release", "model.width": 8, "model.num_heads": 2, "model.feed_forward": True, "train.steps": 4,
        "train.batch_size": 8, "train.eval_every": 0, "train.sample_every": 0, "train.keep": 2,
        "train.checkpoint_every": 2, "optimizer.ema_decay": 0.5,
    },
)  # fmt: skip


def logits(run: pathlib.Path) -> np.ndarray:
    """What the newest checkpoint of a run expects after each token of TEXT, [T,V] float32."""
    restored = restore_params(run)
    tokens_1T = jnp.array([restored.tokenizer.encode(TEXT)], jnp.int32)
    return np.asarray(build(restored.config).apply({"params": restored.params}, tokens_1T)[0])


def main() -> None:
    """Train a few steps, stop half-way, and note what the network says there and what the rest of the run says."""
    folder = FOLDER / sys.argv[1]
    with tempfile.TemporaryDirectory() as temporary:
        whole = pathlib.Path(temporary) / "run"
        train(CONFIG, whole, "command")
        lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
        shutil.copytree(whole, folder / "run", ignore=shutil.ignore_patterns("4", "events.*", ".lock", "goodput.jsonl"))
    said = {"text": TEXT, "logits": logits(folder / "run").tolist(), "end": lines[-1]["eval/loss"]}
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
