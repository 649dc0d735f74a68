"""A plan for people."""

from __future__ import annotations

from typing import Any


def as_text(plan: dict[str, Any]) -> str:
    """The plan as a few short tables."""
    if "hlo" in plan:
        lines = [f"{plan['hlo']} on {plan['topology']}", "", *_time(plan["time"], "train"), ""]
        return "\n".join([*lines, *_collectives(plan["collectives"]), "", plan["note"]])
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items()) or "one device"
    slices = f" x {plan['slices']} slices" if plan["slices"] > 1 else ""
    bound = "libtpu" not in plan["compiler"]
    lines = [
        f"{plan['config']}, {plan['step']} step on {plan['topology']}{slices}: {plan['chips']} chips, mesh {mesh}, "
        f"batch {plan['batch_size']} x {plan['length']}",
        "",
        *_memory(plan),
    ]
    if plan["fits"]:
        time = _bound(plan["time"]) if bound else _time(plan["time"], plan["step"])
        lines += ["", *time, "", *_collectives(plan["collectives"], bound)]
    if run := plan.get("run"):
        lines += ["", f"{'at most ' if bound else ''}{run['tokens_per_second']:,.0f} tokens/s"]
        if "tokens" in run:
            took = f"{run['days']:,.1f} days, {run['chip_hours']:,.0f} chip-hours"
            lines[-1] += f"; {run['tokens']:.3g} tokens take {'at least ' if bound else ''}{took}"
    compiler = plan["compiler"]
    options = " ".join(f"{name}={value}" for name, value in compiler["options"].items())
    versions = ", ".join(
        f"{name} {compiler[name]}" for name in ("libtpu", "jax-cuda12-pjrt", "jax") if name in compiler
    )
    return "\n".join([*lines, "", plan["note"], f"{versions}; {options}"])


def _gib(number: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if number >= 0.1 * size:
            return f"{number / size:9.2f} {unit}"
    return f"{number / 2**10:9.2f} KiB"


def _seconds(number: float) -> str:
    return f"{number:9.3f} s " if number >= 0.1 else f"{number * 1e3:9.3f} ms"


def _end(what: str, longest: int = 90) -> str:
    """An array and the end of the path of the operation that makes it."""
    shape, _, source = what.partition(" ")
    return f"{shape}  {source if len(source) <= longest else '...' + source[-longest:]}"


def _memory(plan: dict[str, Any]) -> list[str]:
    memory = plan["memory"]
    verdict = "fits" if plan["fits"] else "DOES NOT FIT"
    lines = [f"memory per device: {verdict}: {_gib(memory['peak']).strip()} of {_gib(memory['limit']).strip()}"]
    for name in ("parameters", "optimizer", "batch", "cache", "temporary", "code", "host"):
        if memory[name]:
            lines.append(f"  {name:<12}{_gib(memory[name])}")
    shown = plan["largest"] if not plan["fits"] else plan["largest"][:3]
    if shown:
        lines.append("  largest arrays:")
    lines += [f"  {_gib(one['bytes'])}  {_end(one['what'])}" for one in shown]
    if not plan["fits"]:
        lines += ["", "To need less: --model.remat=full, --train.microbatches, more of --mesh.fsdp or --mesh.tensor."]
    return lines


def _time(time: dict[str, float], step: str) -> list[str]:
    null = "72% of peak" if step == "train" else "read memory once"
    rows = [
        ("predicted", time["seconds"], time.get("mfu")),
        ("all communication hidden", time["hidden"], time.get("mfu_hidden")),
        ("as the compiler scheduled it", time["scheduled"], time.get("mfu_scheduled")),
        ("no communication hidden", time["exposed"], time.get("mfu_exposed")),
        (f"null model ({null})", time["null"], time.get("mfu_null")),
    ]
    return [
        "time per step                                  MFU",
        *(f"  {n:<30}{_seconds(s)}" + ("" if m is None else f"  {m:6.1%}") for n, s, m in rows),
    ]


def _bound(time: dict[str, float]) -> list[str]:
    parts = [
        ("matrix multiplications, at the peak", time["compute"]),
        ("state in memory, moved once", time["memory"]),
        ("communication, at the links' speed", time["communication"]),
    ]
    return [
        f"time per step: at least {_seconds(time['seconds']).strip()}, the longest of (MFU at most {time['mfu']:.1%})",
        *(f"  {name:<36}{_seconds(seconds)}" for name, seconds in parts),
    ]


def _collectives(rows: list[dict[str, Any]], bound: bool = False) -> list[str]:
    titles = "    at least" if bound else "       taken       exposed"
    lines = [f"communication       axes              count         GB  {titles}"]
    for row in rows:
        times = [row["seconds"]] if bound else [row["seconds"], row["exposed"]]
        lines.append(
            f"  {row['kind']:<18}{row['axes']:<14}{row['count']:>9}{row['bytes'] / 1e9:>11.3f}"
            + "".join(f"  {_seconds(seconds)}" for seconds in times)
        )
    return lines if rows else ["communication: none"]
