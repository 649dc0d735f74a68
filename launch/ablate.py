"""Change one idea at a time and see what it is worth: runs over variants and seeds, compared with intervals.

uv run -m launch.ablate --config=quickstart --vary=model.attention=mha,mqa --vary=model.position=rope,alibi --seeds=5
uv run -m launch.ablate --config=smoke --vary=optimizer.learning_rate=1e-3,3e-3,1e-2 --seeds=4 --run=runs/rates
uv run -m launch.ablate --config=quickstart --ablation=heads --match=params --dry_run
uv run -m launch.ablate --config=smoke --search=tpe --trials=40 --vary=optimizer.learning_rate=1e-4..1e-1:log

Every setting of launch.train may vary. The same command goes on with what is missing; what is in the run folder's
results.sqlite is not trained again. Runs that differ in seeds and numbers alone are trained together, in one program.
docs/ablations.md shows a whole one.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from absl import flags

from configs import flags as config_flags
from configs.schema import ConfigError
from launch import start
from launch.progress import progress
from train.stop import RESTART, Stop, Stopped

if TYPE_CHECKING:
    from configs.ablations import Variant
    from configs.schema import Config
    from train.ablation import Corpora, Results, RunPlan
    from train.comparison import Comparison, Estimate
    from train.search import Searched

FLAGS = flags.FLAGS
T = TypeVar("T")
SHARE = 0.25  # Of the speed of matmuls that small networks train at, for the expected time.


def define(argv: Sequence[str]) -> None:
    """The flags of this program, and every setting of a run."""
    flags.DEFINE_multi_string(
        "vary", [], "SETTING=VALUE,VALUE,...; given several times, each value with each of the others. The first of "
        "all is the baseline. With --search also SETTING=LOW..HIGH, or LOW..HIGH:log to choose by ratios.",
    )  # fmt: skip
    flags.DEFINE_multi_string("ablation", [], "A named ablation of configs/ablations.py; combined as --vary is.")
    flags.DEFINE_boolean("zip", False, "Take the first values of all --vary together, then the second ones, ...")
    flags.DEFINE_integer("seeds", 3, "Seeds of each variant, from --train.seed on.")
    flags.DEFINE_enum(
        "match",
        "none",
        ["none", "params", "flops", "tokens"],
        "Make variants equal to the baseline in parameters (by feed_forward_width), or in FLOPs or tokens (by steps).",
    )
    flags.DEFINE_string(
        "metric", "eval/bits_per_byte", "What is compared, by its name in metrics.jsonl; lower is better."
    )
    flags.DEFINE_enum(
        "search",
        "none",
        ["none", "tpe", "random"],
        "Instead of all that --vary allows, try --trials choices from it: tpe prefers what is like the best so far "
        "(by the package optuna). The first trial is the baseline: the settings as they are.",
    )
    flags.DEFINE_integer("trials", 40, "With --search: choices to try, each with --seeds seeds.")
    flags.DEFINE_boolean(
        "prune", True, "With --search: end a trial at an evaluation where half of the earlier ones were better."
    )
    flags.DEFINE_enum(
        "fit",
        "none",
        ["none", "scaling"],
        "scaling: fit --metric = E + A / parameters^alpha + B / tokens^beta to the runs, with intervals, and draw it; "
        "needs three widths (or depths) and three --train.steps at least.",
    )
    flags.DEFINE_boolean(
        "dry_run", False, "Only print what would be run; with --json also its programs, one JSON object each."
    )
    flags.DEFINE_integer(
        "program", 0, "Only train the runs of the plan's first, second, ... program, and keep them in a file of their "
        "own, results-1.sqlite, ...: what launch.submit makes a job of.",
    )  # fmt: skip
    flags.DEFINE_boolean("compare_only", False, "Train nothing: compare what is there, from --program's jobs as well.")
    flags.DEFINE_string("run", "runs/ablation", "The folder of results.sqlite, report.html and the tables.")
    flags.DEFINE_boolean("json", False, "One JSON object per variant on stdout instead of a table.")
    config_flags.define(argv)


def run() -> int | None:
    """Print the plan, train what is missing, compare; status 1 where a run failed."""
    searching = FLAGS.search != "none"
    variants, base = [] if searching else variants_asked(), config_flags.resolve()
    if FLAGS.seeds < 1:
        raise ConfigError(f"--seeds={FLAGS.seeds}: it must be at least 1.")
    if FLAGS.print_config:
        print(config_flags.to_json(base))
        return None
    if "device_count" not in os.environ.get("XLA_FLAGS", ""):
        # Runs of one program are spread over devices: on a CPU, each on a core.
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count() or 1))
    start.prepare_jax()
    from train.ablation import Corpora, plan, tokens_of, train_all
    from train.scaling import check_sizes

    corpora = Corpora()
    seeds = range(base.train.seed, base.train.seed + FLAGS.seeds)
    if searching:
        return search_settings(base, seeds, corpora)
    runs = plan(base, variants, seeds, "" if FLAGS.match == "none" else FLAGS.match, corpora)
    folder = pathlib.Path(FLAGS.run)
    runs = of_program(runs)
    results = opened(folder, runs)
    try:
        tell_plan(runs, results)
        if FLAGS.fit == "scaling":
            check_sizes([(one.parameters, tokens_of(one.config)) for one in runs])
        if FLAGS.dry_run:
            return None
        if FLAGS.compare_only:
            return tell(runs, results, folder)
        total = sum(one.config.train.steps for one in runs if not results.done(one))
        with progress() as on_done, stoppable() as check:
            train_all(runs, results, corpora, base, lambda done: check() or on_done("steps", done, total))
        # What failed is told by the command that compares: whoever starts jobs would only start this one again.
        return 0 if FLAGS.program else tell(runs, results, folder)
    except Stopped:
        return tell_stopped()
    finally:
        results.close()


def of_program(runs: list[RunPlan]) -> list[RunPlan]:
    """The runs of --program, or all. Raises ConfigError if there is no such program."""
    from train.ablation import programs

    if not FLAGS.program:
        return runs
    groups = programs(runs)
    if not 1 <= FLAGS.program <= len(groups):
        raise ConfigError(f"--program={FLAGS.program}: this plan has the programs 1 to {len(groups)}.")
    return groups[FLAGS.program - 1]


def opened(folder: pathlib.Path, runs: Sequence[RunPlan]) -> Results:
    """The file of results that this command writes, with what others in the folder have of these runs.

    SQLite's locks don't hold between machines that share a file system, so that each job has a file of its own.
    """
    from train.ablation import Results

    name = f"results-{FLAGS.program}.sqlite" if FLAGS.program else "results.sqlite"
    results = Results(folder / name)
    for path in sorted(folder.glob("results*.sqlite")):
        if path.name != name:
            results.take(path, runs)
    return results


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Gives what raises Stopped once SIGTERM or Ctrl-C has come; before it was called, they end the process at once."""
    stop = Stop(command())

    def check() -> None:
        stop.unsaved = True
        if stop():
            raise Stopped

    stop.install()
    try:
        yield check
    finally:
        stop.uninstall()


def tell_stopped() -> int:
    """The status of one that was asked to stop."""
    print(f"Stopped and saved; to go on: {command()}", file=sys.stderr)
    return RESTART


def command() -> str:
    """This command, as it was typed."""
    return shlex.join(["uv", "run", "-m", "launch.ablate", *sys.argv[1:]])


def variants_asked() -> list[Variant]:
    """The variants of --ablation and --vary. Raises ConfigError for what cannot be, or if there are none."""
    from configs.ablations import grid, side_by_side, varied

    axes = axes_asked(varied)
    return side_by_side(*axes) if FLAGS.zip else grid(*axes)


def axes_asked(read: Callable[[str], T]) -> list[list[Variant] | T]:
    """What --ablation and --vary allow, the latter as `read` reads it. Raises ConfigError if there is nothing."""
    from configs.ablations import ablation

    axes = [*(ablation(name) for name in FLAGS.ablation), *map(read, FLAGS.vary)]
    if not axes:
        raise ConfigError("--vary is missing: name a setting and its values, or an --ablation.")
    return axes


def search_settings(base: Config, seeds: Sequence[int], corpora: Corpora) -> int | None:
    """--search: try choices, then tell the baseline and the others from the best on; status 1 where a run failed."""
    from configs.ablations import searched
    from train.ablation import Results
    from train.search import search

    axes = axes_asked(searched)
    for name, given in {
        "match": FLAGS.match != "none", "fit": FLAGS.fit != "none", "zip": FLAGS.zip, "dry_run": FLAGS.dry_run,
        "program": FLAGS.program, "compare_only": FLAGS.compare_only,
    }.items():  # fmt: skip
        if given:
            raise ConfigError(
                f"--{name}={FLAGS[name].value} is for a list of runs, and --search={FLAGS.search} makes it up on the "
                f"way: leave it out."
            )
    if FLAGS.trials < 1:
        raise ConfigError(f"--trials={FLAGS.trials}: it must be at least 1.")
    folder = pathlib.Path(FLAGS.run)
    results = Results(folder / "results.sqlite")
    try:
        total = FLAGS.trials * base.train.steps
        with progress() as on_done, stoppable() as check:
            found = search(
                base, axes, FLAGS.search, FLAGS.trials, FLAGS.prune, seeds, FLAGS.metric, results, corpora,
                lambda done: check() or on_done("steps", done, total),
            )  # fmt: skip
        return tell_search(found, results, folder)
    except Stopped:
        return tell_stopped()
    finally:
        results.close()


def tell_search(found: Sequence[Searched], results: Results, folder: pathlib.Path) -> int:
    """The trials from the best on, beside the baseline, and why others have no value; see `tell`."""
    first, *others = found
    valued = sorted((one for one in others if one.value is not None), key=lambda one: one.value or 0.0)
    ended = [one.why for one in found if one.value is None]
    for why in ended:
        print(why, file=sys.stderr)
    status = tell([run for one in (first, *valued) for run in one.runs], results, folder, ended)
    return 1 if status or any(one.failed for one in found) else 0


def tell_plan(runs: Sequence[RunPlan], results: Results) -> None:
    """The table of variants on stderr: what each is, what it costs, how long all will take."""
    from train.ablation import programs, tokens_of
    from train.metrics import matmul_peak

    of_variant: dict[str, list[RunPlan]] = {}
    for one in runs:
        of_variant.setdefault(one.variant, []).append(one)
    missing = [one for one in runs if not results.done(one)]
    width = max(map(len, of_variant))
    print(f"{'variant':<{width}}  seeds  done  parameters   steps      tokens    FLOPs", file=sys.stderr)
    for variant, some in of_variant.items():
        first, done = some[0], sum(one not in missing for one in some)
        print(
            f"{variant:<{width}}  {len(some):>5}  {done:>4}  {first.parameters:>10,}  {first.config.train.steps:>6,}  "
            f"{tokens_of(first.config):>10,}  {first.flops:.2e}",
            file=sys.stderr,
        )
    if FLAGS.dry_run and FLAGS.json:
        for number, group in enumerate(programs(runs), 1):
            left = sum(one in missing for one in group)
            print(json.dumps({"program": number, "runs": len(group), "missing": left}))
    if missing:
        seconds = sum(one.flops / (SHARE * matmul_peak(one.config.model.dtype)) for one in missing)
        print(
            f"{len(missing)} of {len(runs)} runs to train, in {len(programs(missing))} programs: about "
            f"{seconds / 60:.1f} minutes, at {SHARE:.0%} of the speed of this machine's matmuls.",
            file=sys.stderr,
        )


def tell(runs: Sequence[RunPlan], results: Results, folder: pathlib.Path, ended: Sequence[str] = ()) -> int:
    """The comparison as a table, and as files in the folder; 1 if a run failed, else 0.

    Args:
      ended: what is to be said of trials of a search that were ended early.
    """
    from launch.views import ablation as views
    from train.comparison import compare

    values: dict[str, dict[int, float]] = {}
    for one in runs:
        points = results.lines(one, FLAGS.metric) if results.done(one) else []
        values.setdefault(one.variant, {}).update({one.seed: points[-1][1]} if points else {})
    failures = {f"{one.variant}, seed {one.seed}": results.error(one) for one in runs if results.error(one)}
    for which, error in failures.items():
        print(f"failed: {which}: {error}", file=sys.stderr)
    if not any(values.values()):
        print(f"No run has a {FLAGS.metric}.", file=sys.stderr)
        return 1
    found = compare(values)
    tell_table(found)
    fitted = tell_scaling(runs, values) if FLAGS.fit == "scaling" else ""
    page = views.ablation_page(
        folder.name, FLAGS.metric, found, curves(runs, results), failures, command(), ended, fitted
    )
    for name, text in {
        "report.html": page, "results.csv": views.as_csv(found), "results.md": views.as_markdown(found),
        "results.tex": views.as_latex(found),
    }.items():  # fmt: skip
        (folder / name).write_text(text, encoding="utf-8")
    print(folder / "report.html", file=sys.stderr)
    return 1 if failures else 0


def tell_table(found: Sequence[Comparison]) -> None:
    """The comparison on stdout."""
    from launch.views import ablation as views

    if FLAGS.json:
        for one in found:
            print(json.dumps({"metric": FLAGS.metric, **one.to_dict()}))
    else:
        print(f"{FLAGS.metric}, lower is better\n{views.as_text(found)}")


def tell_scaling(runs: Sequence[RunPlan], values: Mapping[str, Mapping[int, float]]) -> str:
    """--fit=scaling: the law of the runs that have come to their end on stdout; what report.html says of it."""
    from launch.views import scaling as views
    from train.ablation import tokens_of
    from train.scaling import RESAMPLES, Point, fit

    points = [
        Point(one.parameters, tokens_of(one.config), values[one.variant][one.seed])
        for one in runs if one.seed in values[one.variant]
    ]  # fmt: skip
    with progress() as on_done:
        law = fit(points, RESAMPLES, lambda done: on_done("fits", done, RESAMPLES))
    if FLAGS.json:
        print(json.dumps({"law": asdict(law)}))
    else:
        print(f"\n{views.as_text(law)}")
    return views.section(law, points, FLAGS.metric)


def curves(runs: Sequence[RunPlan], results: Results) -> dict[str, list[tuple[int, Estimate]]]:
    """The metric of each variant at each step that all of its finished seeds have, with its interval."""
    from train.comparison import estimate

    of_variant: dict[str, dict[int, list[float]]] = {}
    for one in runs:
        if results.done(one):
            for step, value in results.lines(one, FLAGS.metric):
                of_variant.setdefault(one.variant, {}).setdefault(step, []).append(value)
    return {
        variant: [
            (step, estimate(values)) for step, values in steps.items() if len(values) == max(map(len, steps.values()))
        ]
        for variant, steps in of_variant.items()
    }


if __name__ == "__main__":
    start.program("launch.ablate", __doc__ or "", run, define, sys.argv)
