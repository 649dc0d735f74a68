"""What TPUs or GPUs would do with a run, before they are rented: does it fit, how fast, on which mesh, at what cost?

  uv run --extra tpu -m launch.plan --config=llama3_8b --topology=v5e:16x16 --mesh.fsdp=-1 --mesh.data=1
  uv run --extra tpu -m launch.plan --config=llama3_8b --topology=v5p-128 --tokens=1e12 --json
  uv run --extra gpu -m launch.plan --config=llama3_8b --topology=h100:4x8 --mesh.fsdp=-1 --mesh.data=1

The step that launch.train would run is compiled for the devices of that name on this machine. Nothing is run on them:
memory is what the compiler says, times are estimates, on GPUs only bounds. How to read the answer: docs/plan.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from configs import flags as config_flags
from configs.schema import ConfigError
from launch import start
from launch.plans.topology import parse, prepare

FLAGS = flags.FLAGS


def define(argv: Sequence[str]) -> None:
    """The flags of this program, and every setting of a run."""
    flags.DEFINE_string(
        "topology",
        "v5e:2x2",
        "The devices: TPUs by shape in chips (v5e:16x16, v5p:4x4x8) or as sold (v5e-256, v5p-128); GPUs on a host or "
        "on several (h100:8, h200:4x8).",
    )
    flags.DEFINE_integer("slices", 1, "How many of these slices of TPUs; --mesh.data or --mesh.stage goes across them.")
    flags.DEFINE_enum("step", "train", ["train", "decode"], "What is compiled: a training step, or one token of text.")
    flags.DEFINE_float("tokens", 0.0, "Say how long and how many chip-hours a run over so many tokens takes.")
    flags.DEFINE_list("options", [], "More options for the compiler, name=value, comma-separated.")
    flags.DEFINE_string(
        "hlo", "", "Price this program instead: a compiled program's text, as libtpu's xla_dump_to writes."
    )
    flags.DEFINE_boolean("json", False, "Print one JSON object instead of a table.")
    config_flags.define(argv)


def run() -> None:
    """Compile, read the program, print the plan."""
    config = config_flags.resolve()
    if FLAGS.print_config:
        print(config_flags.to_json(config))
        return
    topology = parse(FLAGS.topology, FLAGS.slices)
    options = dict(option.partition("=")[::2] for option in FLAGS.options)
    if any(not name or not value for name, value in options.items()):
        raise ConfigError(f"--options={','.join(FLAGS.options)}: write name=value,name=value.")
    prepare(topology)
    from launch.plans.planning import make_plan, price_file
    from launch.plans.report import as_text

    if FLAGS.hlo:
        plan = price_file(Path(FLAGS.hlo), topology)
    else:
        plan = make_plan(config, topology, FLAGS.step, options, FLAGS.tokens)
    print(json.dumps(plan) if FLAGS.json else as_text(plan))


if __name__ == "__main__":
    start.program("launch.plan", __doc__ or "", run, define, sys.argv)
